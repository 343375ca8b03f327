"""The learned scale and bias that follow a normalization, shared by every norm that has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import Moments, standardize
from normjax.precision import Precision, output_dtype, promote, scale_shift_cast, statistics_dtype
from normjax.reductions import Standardization, prepare

Initializer = Callable[[Any, tuple[int, ...], Any], jax.Array]


def init_affine(
    rng: jax.Array | None,
    shape: tuple[int, ...],
    precision: Precision,
    scale_init: Initializer | None,
    bias_init: Initializer | None,
) -> dict[str, jax.Array]:
    """Creates `{"scale": ..., "bias": ...}` of `shape`, leaving out each one whose initializer is `None`."""
    rngs = (None, None) if rng is None else jax.random.split(rng)
    named = (("scale", scale_init, rngs[0]), ("bias", bias_init, rngs[1]))
    return {name: fn(key, shape, precision.parameters) for name, fn, key in named if fn is not None}


def default_init(initializer: Initializer | None, value: float) -> Initializer:
    """Returns `initializer`, or one that fills with `value`."""
    if initializer is not None:
        return initializer
    return lambda rng, shape, dtype: jnp.full(shape, value, dtype)


def affine_inits(
    scale_init: Initializer | None,
    bias_init: Initializer | None,
    use_scale: bool = True,
    use_bias: bool = True,
    start: float = 1.0,
) -> tuple[Initializer | None, Initializer | None]:
    """Returns the initializers in use: `None` for a parameter that is not, by default `start` and 0."""
    scale_init = default_init(scale_init, start) if use_scale else None
    return scale_init, default_init(bias_init, 0.0) if use_bias else None


def affine_params(
    axes: _checks.Axes, name: str, precision: Precision, inits: tuple[Initializer | None, Initializer | None]
) -> Callable[..., dict[str, jax.Array]]:
    """Returns the `init_params` of a norm whose parameters are scale and bias on `axes` of the input, its `name=`."""

    def init_params(rng, x, **context):
        del context
        shape = tuple(x.shape[a] for a in _checks.canonical_axes(axes, x.ndim, name))
        return init_affine(rng, shape, precision, *inits)

    return init_params


def check_affine(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, feature_axes: tuple[int, ...]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns scale and bias, or raises `ValueError` where they do not have the shape of the features of `x`."""
    features = tuple(x.shape[a] for a in feature_axes)
    _checks.check_parameter("scale", scale, x.shape, features)
    _checks.check_parameter("bias", bias, x.shape, features)
    return scale, bias


def affine(
    normalized: jax.Array,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    feature_axes: tuple[int, ...],
    precision: Precision,
    scale_offset: float = 0.0,
) -> jax.Array:
    """Checks scale and bias against the features of `x`, applies them and casts (`scale_shift_cast`)."""
    check_affine(x, scale, bias, feature_axes)
    scale, bias = (None if p is None else _checks.broadcast_to_features(p, feature_axes, x.ndim) for p in (scale, bias))
    return scale_shift_cast(normalized, scale, bias, x.dtype, precision, scale_offset)


def standardized(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    feature_axes: tuple[int, ...],
    spec: Standardization,
    mask: jax.Array | None,
    precision: Precision,
) -> tuple[jax.Array, Moments]:
    """`prepare`, `standardize` and `affine`: one formula where scale and bias are constant in each set, else two."""
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    out = output_dtype(x.dtype, (scale, bias), precision)
    wide = precision.cast_order == "scale_then_cast" and promote(values.dtype, out) == values.dtype
    if not wide or set(feature_axes) & set(spec.axes):
        normalized, moments = standardize(values, mask, spec)
        return affine(normalized, x, scale, bias, feature_axes, precision), moments
    scale, bias = (
        None if p is None else _checks.broadcast_to_features(p, feature_axes, x.ndim).astype(values.dtype)
        for p in check_affine(x, scale, bias, feature_axes)
    )
    y, moments = standardize(values, mask, spec, scale, bias)
    return y.astype(out), moments


def multiplied(
    values: jax.Array, factor: jax.Array, x_dtype: Any, parameters: tuple[jax.Array | None, ...], precision: Precision
) -> tuple[jax.Array, Precision]:
    """Returns `values * factor`, rounded first where the cast order says so, and the policy for what follows."""
    if precision.cast_order != "cast_then_multiply":
        return values * factor, precision
    out = output_dtype(x_dtype, parameters, precision)
    rest = dataclasses.replace(precision, output=out, cast_order="cast_then_scale")
    return values.astype(out) * factor.astype(out), rest
