"""What both series of EvoNorm share: their parameters, and the roots that meet in the denominators."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import Moments, variance
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine
from normjax.precision import Precision, inverse_root, statistics_dtype
from normjax.reductions import prepare


def init_evo(
    rng: jax.Array | None,
    channels: int,
    precision: Precision,
    scale_init: Initializer | None,
    bias_init: Initializer | None,
    with_v: bool,
) -> dict[str, jax.Array]:
    """Creates `{"scale", "bias"}`, and `"v"` (ones) where the variant has it; all live on the channels."""
    params = init_affine(rng, (channels,), precision, *affine_inits(scale_init, bias_init))
    return params | ({"v": jnp.ones((channels,), precision.parameters)} if with_v else {})


def times_v(values: jax.Array, v: jax.Array | None, feature: int) -> jax.Array:
    """Returns `v * values`, `v` living on the axis `feature`; `None` is 1."""
    if v is None:
        return values
    _checks.check_parameter("v", v, values.shape, (values.shape[feature],))
    return values * _checks.broadcast_to_features(v.astype(values.dtype), (feature,), values.ndim)


def scale_shift(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, feature_axis: int, mask: jax.Array | None, precision: Precision
) -> jax.Array:
    """What is left of EvoNorm without its nonlinearity: `scale * x + bias`, with nothing normalized."""
    features = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    _checks.check_input(x)
    values, _ = prepare(x, mask, statistics_dtype(x.dtype, precision))
    return affine(values, x, scale, bias, features, precision)


def root(moment: jax.Array, epsilon: float) -> jax.Array:
    """The square root of `moment + epsilon`, with a finite derivative at 0 without an epsilon too."""
    return (moment + jnp.asarray(epsilon, moment.dtype)) * inverse_root(moment, epsilon)


def rms_minus_values(
    values: jax.Array, centred: jax.Array, within: Moments, rms: jax.Array, epsilon: float
) -> jax.Array:
    """The damped root mean square of each instance minus the values, where both are large too.

    For positive x it is (rms² - x²) / (rms + x), and rms² - x² = s² + epsilon - (x - mean)(x + mean) does not cancel.
    """
    above = (values > 0) & (rms > 0)
    total = jnp.where(above, rms + values, 1)
    damped = variance(within) + jnp.asarray(epsilon, values.dtype)
    # Quotients first: the product of two large numbers may overflow.
    return jnp.where(above, damped / total - centred * ((values + within.mean) / total), rms - values)
