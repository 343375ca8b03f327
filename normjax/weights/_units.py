r"""The one rule behind every reparametrization of output units: centre, divide by the unit's size, multiply.

$$\hat w = f\, g\, \frac{w - \langle w\rangle}{d(w)}$$ over the fan-in of one output unit. The sizes in use differ from
the biased standard deviation by a constant $k$ only: $\|w - \langle w\rangle\| = \sqrt n\,\sigma$ and $\sigma_{n-1} =
\sqrt{n/(n-1)}\,\sigma$. So they share its derivative, with $\epsilon / k$ (or $\epsilon / k^2$ inside the root).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import standardize
from normjax.norms._affine import affine
from normjax.precision import EpsilonMode, Precision, inverse_root, output_dtype, statistics_dtype
from normjax.reductions import prepare, raw_means, standardization

Axes = int | Sequence[int] | None
Size = Literal["std", "unbiased std", "norm"]

# The derivative of an inverse root with a smaller epsilon inside overflows in float32.
_SAFE = 1e-24


def unit_axes(feature_axes: Axes, ndim: int) -> tuple[int, ...]:
    """Returns the axes that number the output units; `None` or `()` makes the whole kernel one unit."""
    if feature_axes is None or (not isinstance(feature_axes, int) and not tuple(feature_axes)):
        return ()
    return _checks.canonical_axes(feature_axes, ndim, "feature_axes")


def unit_shape(kernel: Any, feature_axes: Axes) -> tuple[int, ...]:
    """Returns the shape of one number per output unit."""
    return tuple(kernel.shape[a] for a in unit_axes(feature_axes, kernel.ndim))


def fan_in(kernel: Any, feature_axes: Axes) -> int:
    """Returns how many entries of the kernel one output unit has."""
    units = unit_axes(feature_axes, kernel.ndim)
    return math.prod(kernel.shape[a] for a in _checks.other_axes(units, kernel.ndim))


def normalize_units(
    kernel: jax.Array,
    scale: jax.Array | None,
    feature_axes: Axes,
    epsilon: float,
    epsilon_mode: EpsilonMode,
    precision: Precision,
    *,
    centre: bool,
    size: Size,
    factor: float = 1.0,
) -> jax.Array:
    """Returns the kernel with every unit centred (or not), divided by its size and multiplied by `factor * scale`."""
    units = unit_axes(feature_axes, kernel.ndim)
    _checks.check_input(kernel, _checks.other_axes(units, kernel.ndim))
    count = fan_in(kernel, feature_axes)
    if centre and count < 2:
        raise ValueError(
            f"feature_axes={feature_axes!r} leave a fan-in of {count} in a kernel of shape {tuple(kernel.shape)}: "
            "centred, it is 0 whatever the weights are. Leave out this kernel, or name its output axes alone."
        )
    ratio = {"std": 1.0, "norm": math.sqrt(count), "unbiased std": math.sqrt(count / max(count - 1, 1))}[size]
    epsilon = epsilon / (ratio**2 if epsilon_mode == "inside" else ratio)
    shape, out = unit_shape(kernel, feature_axes), output_dtype(kernel.dtype, (scale,), precision)
    _checks.check_parameter("scale", scale, kernel.shape, shape)
    folds, wide = precision.cast_order == "scale_then_cast", dataclasses.replace(precision, output=out)
    if folds and not centre and not 0 < epsilon < _SAFE:
        # One multiplier for each unit, so that one sum in the backward pass serves it and the kernel.
        if epsilon_mode == "inside" and not epsilon:
            # The same function, whose derivative does not overflow for units of norm 1e-14.
            epsilon_mode = "clamp"
        values, spec = _prepared(kernel, feature_axes, precision, centre)
        (square,), _ = raw_means((values * values,), None, spec)
        inverse = inverse_root(square, epsilon, epsilon_mode).reshape(shape)
        multiplier = inverse * (factor / ratio)
        multiplier = multiplier if scale is None else multiplier * scale.astype(multiplier.dtype)
        return affine(values.reshape(kernel.shape), kernel, multiplier, None, units, wide)
    if folds:
        values, spec = _prepared(kernel, feature_axes, precision, centre, epsilon=epsilon, epsilon_mode=epsilon_mode)
        multiplier = jnp.ones(shape, values.dtype) if scale is None else scale.astype(values.dtype)
        multiplier = _checks.broadcast_to_features(multiplier * (factor / ratio), units, kernel.ndim)
        normalized, _ = standardize(
            values, None, spec, multiplier.reshape((1,) * (values.ndim - kernel.ndim) + multiplier.shape)
        )
        return affine(normalized.reshape(kernel.shape), kernel, None, None, units, wide)
    normalized, _ = _standardized(kernel, feature_axes, precision, epsilon, epsilon_mode, centre)
    return affine(normalized * (factor / ratio), kernel, scale, None, units, precision)


def unit_norms(kernel: jax.Array, feature_axes: Axes, precision: Precision) -> jax.Array:
    """Returns the Euclidean norm of every output unit, in the parameters' dtype."""
    _, square = _standardized(kernel, feature_axes, precision, 0.0, "inside", centre=False)
    return jnp.sqrt(square.reshape(unit_shape(kernel, feature_axes))).astype(precision.parameters)


def _standardized(kernel, feature_axes: Axes, precision: Precision, epsilon, mode: EpsilonMode, centre: bool):
    """The standardized kernel, and the sum of squares (of deviations) of every unit."""
    values, spec = _prepared(kernel, feature_axes, precision, centre, epsilon=epsilon, epsilon_mode=mode)
    normalized, moments = standardize(values, None, spec)
    return normalized.reshape(kernel.shape), moments.m2


def _prepared(kernel, feature_axes: Axes, precision: Precision, centre: bool, **options: Any):
    reduced = _checks.other_axes(unit_axes(feature_axes, kernel.ndim), kernel.ndim)
    _checks.check_input(kernel, reduced)
    values, _ = prepare(kernel, None, statistics_dtype(kernel.dtype, precision))
    # A vector of units has no axis of its own to reduce: each entry is the only weight of its unit.
    values = values if reduced else values[None]
    return values, standardization(values, reduced or 0, centre=centre, **options)
