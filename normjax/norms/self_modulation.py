r"""Self-modulation, the scale affine layer of SegPIC (Liu et al. 2024): each position scales and shifts itself.

$$y = x \odot (1 + s) + b,\qquad (s, b) = \mathrm{GELU}(x A + a)\, B + b_0$$

Two linear layers (1x1 convolutions) of width C, C and 2C with the exact GELU, drawn as torch draws them. It normalizes
nothing: positions do not see each other, a mask only keeps what lies behind it out of gradients. No state, no folding,
no scale invariance.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._modulate import linear, linear_init, modulate
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


def self_modulate(
    x: jax.Array,
    hidden: Mapping[str, jax.Array],
    out: Mapping[str, jax.Array],
    *,
    feature_axis: int = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Scales and shifts each position by what it says of itself: $y = x (1 + s(x)) + b(x)$.

    Args:
      x: Floating array.
      hidden: `{"kernel", "bias"}` of shapes `(C, H)` and `(H,)`.
      out: `{"kernel", "bias"}` of shapes `(H, 2 C)` and `(2 C,)`; the scale's columns come first.
      feature_axis: The axis of length C.
      mask: Broadcastable to `x`; what is not finite behind it counts as 0.
      precision: Dtype of the computation.

    Returns:
      The modulated array, in the shape and dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> hidden = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
      >>> out = {"kernel": jnp.zeros((1, 2)), "bias": jnp.array([1.0, 0.5])}
      >>> print(nj.self_modulate(jnp.array([[3.0]]), hidden, out))
      [[6.5]]

    References:
      Liu et al. 2024, [Region-Adaptive Transform with Segmentation Prior for Image
      Compression](https://arxiv.org/abs/2403.00628).
    """
    _checks.check_input(x)
    (axis,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    values, _ = prepare(x, mask, statistics_dtype(x.dtype, precision))
    last = jnp.moveaxis(values, axis, -1)
    inner = jax.nn.gelu(linear(last, hidden["kernel"], hidden["bias"], "x"), approximate=False)
    scale, shift = jnp.split(linear(inner, out["kernel"], out["bias"], "x"), 2, axis=-1)
    return jnp.moveaxis(modulate(last, scale, shift), -1, axis).astype(x.dtype)


@method("Scale affine layer (self-modulation)", "Liu et al. 2024", "2403.00628", "vision")
def self_modulation(*, feature_axis: int = -1, precision: Precision = TORCH) -> NormTransform:
    """The scale affine layer as a transform; parameters `{"hidden", "out"}`, each `{"kernel", "bias"}`, no state.

    Args:
      feature_axis: Where the features are; 1 for torch's images.
      precision: Dtypes of parameters and computation.

    Returns:
      The transform; `init` needs a key.

    Raises:
      ValueError: If `init` gets no key.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.self_modulation().init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
      >>> params["out"]["kernel"].shape
      (3, 6)

    References:
      Liu et al. 2024, [SegPIC](https://arxiv.org/abs/2403.00628).
    """

    def init_params(rng, x, **context):
        del context
        width = x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        keys = (None, None) if rng is None else jax.random.split(rng)
        sizes = (("hidden", width), ("out", 2 * width))
        return {
            layer: linear_init(key, width, outputs, precision.parameters, "self_modulation")
            for key, (layer, outputs) in zip(keys, sizes, strict=True)
        }

    def fn(params, x, *, mask, **context):
        del context
        return self_modulate(
            x, params["hidden"], params["out"], feature_axis=feature_axis, mask=mask, precision=precision
        )

    return stateless(fn, init_params)
