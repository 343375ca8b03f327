r"""Learned region normalization (Yu et al. 2020): the regions are where a map of the features themselves is high.

$$q = \sigma(k * [\text{mean}_C\, x, \max{}_C\, x]),\qquad R_1 = \{q \ge 0.8\},\qquad
y = (1 + k_\gamma * q)\,\hat x + k_\beta * q$$

$\hat x$ is that of region normalization (`normjax.norms.region_norm`) with these regions. No gradient passes the
threshold: the first convolution learns through scale and shift alone. No state, no context; at its initial $q$ near 0.5
it is batch normalization with the batch's own statistics. Nothing folds, and no weight before it is scale-invariant.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import compute_moments
from normjax.norms._affine import Initializer
from normjax.norms._conv import check_window, convolve, init_layer
from normjax.norms._modulate import modulate
from normjax.norms._regions import standardize_regions
from normjax.precision import TORCH, Precision, output_dtype, statistics_dtype
from normjax.reductions import AxisName, prepare
from normjax.transform import NormTransform, stateless


def learned_region_normalize(
    x: jax.Array,
    params: Mapping[str, Any],
    *,
    threshold: float = 0.8,
    axis: _checks.Axes | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Region normalization by learned regions: $y = (1 + k_\gamma * q)\,\hat x + k_\beta * q$.

    Args:
      x: Floating array `(batch, *space, channels)`.
      params: Convolutions `{"mask", "scale", "bias"}`, each `{"kernel", "bias"}`: from the 2 pooled channels to 1
        without a bias, then twice from 1 to 1.
      threshold: Least $q$ of the foreground.
      axis: Axes over which a region's statistics are pooled; `None` is all but the features, as released.
      feature_axis: Channel axis.
      epsilon: Non-negative number.
      mask: Broadcastable to `x`; zeros belong to no region and are to the convolutions what lies beyond the border.
      axis_name: Mapped axis over which the batch is sharded.
      precision: Dtypes.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask or epsilon do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x = jnp.ones((2, 5, 5, 4))
      >>> params, _ = nj.learned_region_norm(kernel_size=3).init(jax.random.key(0), x)
      >>> nj.learned_region_normalize(x, params).shape
      (2, 5, 5, 4)

    References:
      Yu et al. 2020, [Region Normalization for Image Inpainting](https://arxiv.org/abs/1911.10375).
    """
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    values, valid = prepare(x, mask, statistics_dtype(x.dtype, precision))
    valid = jnp.ones((1,) * x.ndim, bool) if valid is None else valid
    present = jnp.any(valid, axis=feature, keepdims=True)
    mean = compute_moments(values, feature, mask=valid).mean
    highest = jnp.max(jnp.where(valid, values, -jnp.inf), axis=feature, keepdims=True)
    pooled = jnp.where(present, jnp.concatenate([mean, highest], axis=feature), 0)
    q = jax.nn.sigmoid(convolve(jnp.moveaxis(pooled, feature, -1), params["mask"]))
    q = jnp.where(jnp.moveaxis(present, feature, -1), q, 0)
    gamma, shift = (jnp.moveaxis(convolve(q, params[name]), -1, feature) for name in ("scale", "bias"))
    foreground = jnp.moveaxis(q, -1, feature) >= threshold
    normalized = standardize_regions(x, foreground, axis, feature, epsilon, mask, axis_name, precision)
    leaves = tuple(jax.tree.leaves(dict(params)))
    return modulate(normalized, gamma, shift).astype(output_dtype(x.dtype, leaves, precision))


@method("Learned region normalization", "Yu et al. 2020", "1911.10375", "vision")
def learned_region_norm(
    *,
    kernel_size: int = 7,
    threshold: float = 0.8,
    axis: _checks.Axes | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Learned region normalization (RN-L) as a transform; no context, no state.

    Args:
      kernel_size: Odd window of the three convolutions; 3 or 7 as published.
      threshold, axis, feature_axis, epsilon, axis_name, precision: As in `learned_region_normalize`.
      kernel_init, bias_init: Initializers; uniform within 1 / sqrt(fan in), and zeros, by default.

    Returns:
      The transform; its parameters are three convolutions, `{"mask", "scale", "bias"}`.

    Raises:
      ValueError: If the window is even, the threshold outside [0, 1] or epsilon negative.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> params, state = nj.learned_region_norm().init(jax.random.key(0), jnp.ones((2, 9, 9, 4)))
      >>> params["mask"]["kernel"].shape, params["scale"]["kernel"].shape
      ((7, 7, 2, 1), (7, 7, 1, 1))

    References:
      Yu et al. 2020, [Region Normalization for Image Inpainting](https://arxiv.org/abs/1911.10375).
    """
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("threshold", threshold)
    check_window(kernel_size)

    def init_params(rng, x, **context):
        del context
        rngs = [None] * 3 if rng is None else jax.random.split(rng, 3)
        window = (kernel_size,) * (x.ndim - 2)
        params = {}
        for key, name, inputs in zip(rngs, ("mask", "scale", "bias"), (2, 1, 1), strict=True):
            shape, use_bias = (*window, inputs, 1), name != "mask"
            params[name] = init_layer(key, shape, precision.parameters, kernel_init, bias_init, use_bias=use_bias)
        return params

    def fn(params, x, *, mask, **context):
        del context
        options = {"axis": axis, "feature_axis": feature_axis, "epsilon": epsilon, "axis_name": axis_name}
        return learned_region_normalize(x, params, threshold=threshold, mask=mask, precision=precision, **options)

    return stateless(fn, init_params)
