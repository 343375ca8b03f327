"""What every rule does with a vector of features and a kernel: NumPy or JAX arrays in, the same kind out."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax import _checks

Axes = int | Sequence[int]
Array = Any  # np.ndarray or jax.Array; what a rule gets decides what it computes with


def axes_of(axes: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """Returns axes as non-negative ints in the order given, which is that of the vector that lives on them."""
    named = (axes,) if isinstance(axes, int) else tuple(axes)
    _checks.canonical_axes(named, ndim, name)
    return tuple(a % ndim for a in named)


def along(vector: Array, axes: Sequence[int], kernel: Array, name: str) -> Array:
    """Returns a vector of features with the axes of a kernel, size 1 where it has none."""
    shape = tuple(kernel.shape[a] for a in axes)
    if tuple(vector.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}, expected {shape}, the sizes of axes {tuple(axes)} of a kernel of "
            f"shape {tuple(kernel.shape)}; name the axes of this layout (HWIO convolutions and Dense: -2 in, -1 out)."
        )
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return _checks.broadcast_to_features(vector.transpose(order), sorted(axes), kernel.ndim)


def to_features(array: Array, axes: Sequence[int]) -> Array:
    """Sums a kernel-shaped array over all but some axes, which come out in the order they are named in."""
    rest = tuple(a for a in range(array.ndim) if a not in axes)
    kept = sorted(axes)
    total = array.sum(rest) if rest else array
    return total.transpose([kept.index(a) for a in axes])


def check_bias(bias: Array | None, axes: Sequence[int], kernel: Array) -> None:
    """Raises unless a bias, if there is one, has the shape of the kernel's output axes."""
    expected = tuple(kernel.shape[a] for a in axes)
    if bias is not None and tuple(bias.shape) != expected:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected {expected}, the output axes {tuple(axes)} of a kernel of "
            f"shape {tuple(kernel.shape)}."
        )


def count_of(where: Array) -> int:
    """Counts what is true in an array; 0 where it is traced and its values are not known."""
    return 0 if isinstance(where, Tracer) else int(np.sum(np.asarray(where)))


def is_zero(array: Array | None) -> bool:
    """Whether an array is absent or known to be 0 everywhere."""
    return array is None or not (isinstance(array, Tracer) or count_of(array != 0))


def added(bias: Array | None, shift: Array | None) -> Array | None:
    """The sum of two vectors of which either may be absent."""
    if bias is None or shift is None:
        return shift if bias is None else bias
    return bias + shift


def namespace(*arrays: Array) -> Any:
    """`numpy` where every array is NumPy's, else `jax.numpy`."""
    return np if all(isinstance(a, np.ndarray | np.generic | float | int) for a in arrays) else jnp
