r"""Layer normalization (Ba, Kiros and Hinton 2016): each token by its own mean and variance.

$$y = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta,\qquad
\mu = \langle x \rangle,\ \sigma^2 = \langle (x-\mu)^2 \rangle$$

Statistics are taken over `axis` and are different for every other position; the parameters live on the feature
axes. No state. Weights that feed it are scale-invariant up to epsilon.
"""

from typing import Any

import jax

import pallas_kernels
from normjax import _checks
from normjax._method import method
from normjax.moments import standardize
from normjax.norms._affine import Initializer, affine, affine_inits, affine_params
from normjax.norms._kernels import Implementation, runs_kernel
from normjax.precision import TORCH, EpsilonMode, Precision, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform, stateless


def layer_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: _checks.Axes = -1,
    feature_axes: _checks.Axes | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    scale_offset: float = 0.0,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> jax.Array:
    r"""Layer normalization of an array: $y = (o + \gamma)\,(x-\mu)/\sqrt{\sigma^2+\epsilon} + \beta$.

    Args:
      x: Floating array of any shape.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      axis: Axes over which the statistics are taken.
      feature_axes: Axes on which scale and bias live; `None` means `axis`. Per-head normalization is
        `axis=-1, feature_axes=(-2, -1)`.
      epsilon: Non-negative number added to the variance. 1e-6 as in Flax; torch has 1e-5.
      epsilon_mode: Where epsilon sits: `"inside"` the root, `"outside"`, or as a `"clamp"` of the root.
      scale_offset: $o$; 1 for weights stored around zero (LayerNorm1P).
      mask: Broadcastable to `x`; zeros do not enter the statistics. A fully masked row is left at
        `x / sqrt(1 + epsilon)`.
      axis_name: Mapped axis over which the normalized axes are sharded; statistics are merged by counts.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.
      implementation: `"mosaic_tpu"` or `"triton"` run that kernel of `pallas_kernels`, forward and backward, or raise;
        `None` is the formula in `jax.numpy`, which XLA fuses into what is beside it.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask, parameters or epsilon do not fit.
      NotImplementedError: If a kernel is named that lacks what the call asks for.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.layer_normalize(jnp.array([[1.0, 2.0, 3.0]])).round(3))
      [[-1.225  0.     1.225]]

    References:
      Ba, Kiros and Hinton 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """
    refused = {"mask": mask is not None, "axis_name": axis_name is not None, "feature_axes": feature_axes is not None}
    refused |= {"epsilon_mode": epsilon_mode != "inside", "precision": precision != TORCH}
    if runs_kernel(implementation, **refused):
        own = {"axis": axis, "epsilon": epsilon, "scale_offset": scale_offset, "implementation": implementation}
        return pallas_kernels.layer_norm(x, scale, bias, **own)
    spec = standardization(
        x, axis, epsilon=epsilon, epsilon_mode=epsilon_mode, axis_name=axis_name, axis_index_groups=axis_index_groups
    )
    features = spec.axes if feature_axes is None else _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    normalized, _ = standardize(values, mask, spec)
    return affine(normalized, x, scale, bias, features, precision, scale_offset)


@method(
    "Layer normalization", "Ba, Kiros and Hinton 2016", "1607.06450", "token", folds="affine", scale_invariance="joint"
)
def layer_norm(
    *,
    axis: _checks.Axes = -1,
    feature_axes: _checks.Axes | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    use_scale: bool = True,
    use_bias: bool = True,
    scale_offset: float = 0.0,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> NormTransform:
    """Layer normalization as a transform; parameters `{"scale", "bias"}`, no state.

    Args:
      axis, feature_axes, epsilon, epsilon_mode: As in `layer_normalize`.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_offset: Added to the scale; the scale then starts at `1 - scale_offset`.
      scale_init, bias_init: Initializers, `f(rng, shape, dtype)`; the bias starts at 0.
      axis_name, axis_index_groups, precision, implementation: As in `layer_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.layer_norm(use_bias=False).init(None, jnp.ones((2, 8)))
      >>> params["scale"].shape
      (8,)

    References:
      Ba, Kiros and Hinton 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias, 1.0 - scale_offset)
    options: dict[str, Any] = {"axis": axis, "feature_axes": feature_axes, "scale_offset": scale_offset}
    options |= {"epsilon": epsilon, "epsilon_mode": epsilon_mode, "precision": precision}
    options |= {"implementation": implementation}
    options |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups}

    def fn(params, x, *, mask, **context):
        del context
        return layer_normalize(x, params.get("scale"), params.get("bias"), mask=mask, **options)

    axes, name = (axis, "axis") if feature_axes is None else (feature_axes, "feature_axes")
    return stateless(fn, affine_params(axes, name, precision, inits))
