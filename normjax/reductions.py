"""What a standardization reduces: axes, masks, groups of neighbours and mapped axes, and the sums over them.

Every statistic of the library is a few sums over valid positions, divided by their count. Counts and sums of all
devices are added before the division: that is what makes masks, unequal shards and empty shards exact.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import EpsilonMode, statistics_dtype

AxisName = Hashable | None


@dataclasses.dataclass(frozen=True)
class Standardization:
    """The static description of one standardization: what is reduced, and how epsilon enters.

    Attributes:
      axes: Canonical axes to reduce.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits (`normjax.precision.inverse_root`).
      centre: Whether the mean is subtracted; without it the second moment is the mean square.
      ddof: Subtracted from the count in the variance that divides; 1 for the unbiased one.
      axis_name: Mapped axis to merge over.
      axis_index_groups: Groups of that axis, as a tuple of tuples.
      neighbours: `(axis, size)`: groups of `size` neighbours on a kept axis share their statistics, which are returned
        for every member. The sums over the other axes come first: an array cut into groups has its smallest axis last,
        where it is summed slowest.
      narrow: Whether the input has fewer bits than the statistics, which then measure its mean more than well enough.
    """

    axes: tuple[int, ...]
    epsilon: float = 0.0
    epsilon_mode: EpsilonMode = "inside"
    centre: bool = True
    ddof: int = 0
    axis_name: AxisName = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    neighbours: tuple[int, int] | None = None
    narrow: bool = False


def standardization(
    x: Any,
    axis: _checks.Axes,
    *,
    epsilon: float = 0.0,
    epsilon_mode: EpsilonMode = "inside",
    centre: bool = True,
    ddof: int = 0,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    neighbours: tuple[int, int] | None = None,
) -> Standardization:
    """Checks the arguments against `x` and returns them as a hashable `Standardization`."""
    # With a mapped axis or with neighbours there is something to reduce even where no axis of the array is.
    elsewhere = axis_name is not None or neighbours is not None
    none_here = elsewhere and not isinstance(axis, int) and not tuple(axis)
    axes = () if none_here else _checks.canonical_axes(axis, x.ndim)
    _checks.check_input(x, axes)
    _checks.check_epsilon(epsilon)
    groups = None if axis_index_groups is None else tuple(tuple(g) for g in axis_index_groups)
    if groups is not None and axis_name is None:
        raise ValueError(f"axis_index_groups={axis_index_groups!r} needs axis_name=, got axis_name=None.")
    narrow = jnp.finfo(x.dtype).bits < 32
    return Standardization(axes, epsilon, epsilon_mode, centre, ddof, axis_name, groups, neighbours, narrow)


def prepare(x: jax.Array, mask: jax.Array | None, dtype: Any = None) -> tuple[jax.Array, jax.Array | None]:
    """Casts `x` to the statistics dtype and makes the mask boolean, full rank and NaN-proof.

    Args:
      x: Floating array.
      mask: Broadcastable to `x`, any dtype, or `None`.
      dtype: Statistics dtype; `None` is float32, or float64 where `x` is.

    Returns:
      `(values, mask)`; non-finite values at masked-out positions are replaced by 0, because 0 * NaN in a
      cotangent would otherwise reach every valid position.
    """
    values = x.astype(statistics_dtype(x.dtype) if dtype is None else dtype)
    if mask is None:
        return values, None
    _checks.check_mask(mask, x.shape)
    mask = jnp.asarray(mask).astype(bool)
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    return jnp.where(mask | jnp.isfinite(values), values, 0), mask


def count_valid(values: jax.Array, mask: jax.Array | None, spec: Standardization) -> jax.Array:
    """The number of valid positions over the axes of `spec` and its mapped axis, in the dtype of `values`."""
    if mask is None:
        size = math.prod(values.shape[a] for a in spec.axes) * (1 if spec.neighbours is None else spec.neighbours[1])
        count = jnp.full((1,) * values.ndim, size, values.dtype)
        # psum of a constant is the axis size times it: no collective is emitted.
        return count if spec.axis_name is None else across(count, spec)
    # A mask axis of size 1 stands for the whole axis of the values. Integers count exactly.
    repeat = math.prod(values.shape[a] for a in spec.axes if mask.shape[a] == 1)
    valid = jnp.sum(mask, axis=spec.axes, keepdims=True, dtype=jnp.int32) * repeat
    valid = _over_neighbours(valid, spec)
    return across(valid, spec).astype(values.dtype)


def means(
    values: tuple[jax.Array, ...], mask: jax.Array | None, count: jax.Array, spec: Standardization
) -> tuple[jax.Array, ...]:
    """Means of several arrays over the valid positions, merged across devices together; 0 for an empty set."""
    if mask is not None:
        values = tuple(jnp.where(mask, v, 0) for v in values)
    sums = tuple(_over_neighbours(jnp.sum(v, axis=spec.axes, keepdims=True), spec) for v in values)
    divisor = jnp.maximum(count, 1)
    return tuple(total / divisor for total in across(sums, spec))


def raw_means(
    arrays: tuple[jax.Array, ...], mask: jax.Array | None, spec: Standardization
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Means of several arrays in one pass, for equations in raw sums, where nothing cancels and nothing is centred.

    Args:
      arrays: Arrays of one shape, prepared (`prepare`), such as `(values, values * values)`.
      mask: Boolean, full rank, as returned by `prepare`, or `None`.
      spec: What is reduced; its epsilon and centring do not matter.

    Returns:
      `(means, count)`, reduced axes kept with size 1; 0 for an empty set, whose count is 0.
    """
    count = count_valid(arrays[0], mask, spec)
    return means(arrays, mask, count, spec), count


def across(value: Any, spec: Standardization) -> Any:
    """The sum over the mapped axis of `spec`, if it has one."""
    if spec.axis_name is None:
        return value
    groups = None if spec.axis_index_groups is None else [list(g) for g in spec.axis_index_groups]
    return jax.lax.psum(value, spec.axis_name, axis_index_groups=groups)


def _over_neighbours(total: jax.Array, spec: Standardization) -> jax.Array:
    """The sum over each group of neighbours, at every member of the group."""
    if spec.neighbours is None:
        return total
    axis, size = spec.neighbours
    if total.shape[axis] == 1:  # one value of a mask for the whole axis
        return total * size
    cut = total.reshape(*total.shape[:axis], -1, size, *total.shape[axis + 1 :])
    together = jnp.sum(cut, axis=axis + 1, keepdims=True, dtype=total.dtype)
    return jnp.broadcast_to(together, cut.shape).reshape(total.shape)
