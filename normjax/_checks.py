"""Argument checks shared by every norm: each error says what came, what was expected and the way out."""

from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

Axes = int | Sequence[int]


def canonical_axes(axis: Axes, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """Returns `axis` as a sorted tuple of distinct non-negative ints, or raises `ValueError`."""
    axes = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    if not axes:
        raise ValueError(f"{name}=() names no axis; give at least one axis of an array of rank {ndim}.")
    for a in axes:
        if not isinstance(a, (int, np.integer)) or isinstance(a, bool):
            raise TypeError(f"{name} must be an int or a sequence of ints, got {axis!r}.")
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{name}={axis!r} is out of range for an array of rank {ndim}; "
                f"expected every axis in [{-ndim}, {ndim})."
            )
    canonical = sorted(int(a) % ndim for a in axes)
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"{name}={axis!r} names the same axis twice for an array of rank {ndim}.")
    return tuple(canonical)


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns the axes of a rank-`ndim` array that are not in the canonical `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def check_input(x: Any, axes: Sequence[int] = ()) -> None:
    """Raises unless `x` is a floating array whose `axes` hold at least one element."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"expected a real floating input, got dtype {x.dtype} of shape {tuple(x.shape)}; "
            "convert it first, e.g. x.astype(jnp.float32)."
        )
    if any(x.shape[a] == 0 for a in axes):
        raise ValueError(
            f"cannot take statistics over axes {tuple(axes)} of an input of shape {tuple(x.shape)}: "
            "they hold no elements. Drop empty batches before normalizing."
        )


def check_epsilon(epsilon: float) -> None:
    """Raises `ValueError` unless `epsilon` is a finite number >= 0."""
    if not (np.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"expected a finite epsilon >= 0, got epsilon={epsilon!r}.")


def check_fraction(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} in [0, 1], got {name}={value!r}.")


def check_count(name: str, value: int, least: int = 0) -> None:
    """Raises unless `value` is an int of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"expected an int for {name}, got {name}={value!r}.")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {name}={value!r}.")


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Raises `ValueError` unless `value` is one of the names of the literal type `allowed`."""
    if value not in get_args(allowed):
        raise ValueError(f"{name}={value!r} is unknown; expected one of {get_args(allowed)}.")


def check_mask(mask: Any, shape: Sequence[int]) -> None:
    """Raises `ValueError` unless `mask` broadcasts to `shape` by NumPy's rules."""
    try:
        fits = np.broadcast_shapes(mask.shape, tuple(shape)) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to the input's shape {tuple(shape)}; "
            "shapes align from the right, so a (batch, length) mask needs mask[..., None]."
        )


def check_parameter(name: str, parameter: Any, shape: Sequence[int], feature_shape: Sequence[int]) -> None:
    """Raises `ValueError` unless `parameter` has the shape of the feature axes of the input."""
    if parameter is not None and tuple(parameter.shape) != tuple(feature_shape):
        raise ValueError(
            f"{name} has shape {tuple(parameter.shape)} but the feature axes of the input "
            f"{tuple(shape)} have shape {tuple(feature_shape)}; pass feature_axes= if they are others."
        )


def broadcast_to_features(parameter: jax.Array, axes: Sequence[int], ndim: int) -> jax.Array:
    """Reshapes a parameter that lives on the canonical `axes` so that it broadcasts to rank `ndim`."""
    shape = [1] * ndim
    for a, size in zip(axes, parameter.shape, strict=True):
        shape[a] = size
    return parameter.reshape(shape)
