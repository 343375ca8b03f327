r"""Input-scaled RMS normalization (Muse Spark): the scale comes before the statistic and not after it.

$$y = \text{RMS}\big((o + w) \odot x\big),\qquad o = 1,\ w_0 = 0$$

The scale turns the input and cannot change the length of the output. The product is rounded to the input's dtype before
it is normalized, as the model does; it also adds 1 in the weight's own dtype (`Precision(narrow_offset=True)`).
No paper: the model's public code is the source. No state. Weights that feed it are jointly scale-invariant, and so is
$o + w$ itself.
"""

import functools

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine_inits, affine_params
from normjax.norms.rms_norm import rms_normalize
from normjax.precision import TORCH, EpsilonMode, Precision, offset_scale, promote, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


def input_scaled_rms_normalize(
    x: jax.Array,
    scale: jax.Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    scale_offset: float = 1.0,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""RMS normalization of the scaled array: $y = \text{RMS}((o + w)\, x)$.

    Args:
      x: Floating array of any shape.
      scale: $w$, of shape `(features,)`.
      axis: The axis of the features.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits.
      scale_offset: $o$.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      precision: Dtypes and cast order of the normalization.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axis, mask, scale or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.input_scaled_rms_normalize(jnp.array([[4.0, 6.0]]), jnp.array([2.0, 1.0])).round(3))
      [[1. 1.]]
    """
    axes = _checks.canonical_axes((axis,), x.ndim)
    _checks.check_input(x, axes)
    _checks.check_parameter("scale", scale, x.shape, (x.shape[axes[0]],))
    factor = offset_scale(scale, scale_offset, statistics_dtype(x.dtype, precision), precision)
    wide = promote(x.dtype, factor.dtype)
    values, _ = prepare(x, mask, wide)
    factor = _checks.broadcast_to_features(factor.astype(wide), axes, x.ndim)
    scaled = (values * factor).astype(x.dtype)
    return rms_normalize(scaled, axis=axis, epsilon=epsilon, epsilon_mode=epsilon_mode, mask=mask, precision=precision)


@method("Input-scaled RMS normalization", "Muse Spark's public code", None, "token", scale_invariance="joint")
def input_scaled_rms_norm(
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    scale_offset: float = 1.0,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Input-scaled RMS normalization as a transform; parameters `{"scale"}`, no state.

    Args:
      axis, epsilon, epsilon_mode, precision: As in `input_scaled_rms_normalize`.
      scale_offset: Added to the scale; the scale then starts at `1 - scale_offset`.
      scale_init: Initializer of the scale, `f(rng, shape, dtype)`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.input_scaled_rms_norm().init(None, jnp.ones((2, 3)))
      >>> print(params["scale"])
      [0. 0. 0.]
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, None, use_bias=False, start=1.0 - scale_offset)
    normalize = functools.partial(input_scaled_rms_normalize, axis=axis, epsilon=epsilon, epsilon_mode=epsilon_mode)
    normalize = functools.partial(normalize, scale_offset=scale_offset, precision=precision)
    return stateless(
        lambda params, x, *, mask, **context: normalize(x, params["scale"], mask=mask),
        affine_params((axis,), "axis", precision, inits),
    )
