"""What a TPU kernel does with a block in VMEM: sweeps over its planes, and sums over the channels of a group.

Channels lie along the lanes of a plane (axis 1) or its sublanes (axis 0); one number per channel is a row (1, channels)
or a column (channels, 1), here a vector. The groups are an indicator of (groups, channels), or its transpose: a select
and a sum, exact in float32 where a product on the matrix unit would round, and of a few registers beside the hundreds
of a map.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels._strips import LANES
from pallas_kernels._tpu_blocks import sublanes

F32 = jnp.float32
# Rows of a strip, by the axis of channels: vectors along the sublanes fill as many registers as the strip. Elements and
# planes per step of a loop, whose sums are added before they meet the accumulator.
STRIPS = (32, 64)
UNROLLED, PLANES = 256 * LANES, 8
# A strip of rows of a plane and of channels: `(plane, rows, channels)`.
Index = tuple[jax.Array | int, slice, slice]


def _strips(ref, axis: int) -> list[list[tuple[slice, slice]]]:
    """Strips of a plane, (rows, lanes), in a list for each strip of channels."""
    _, rows, lanes = ref.shape
    unit = sublanes(ref.dtype)
    full = rows // unit * unit
    of_rows = [slice(first, min(first + STRIPS[axis], full)) for first in range(0, full, STRIPS[axis])]
    of_rows += [slice(full, rows)] if full < rows else []
    of_lanes = [slice(first, min(first + LANES, lanes)) for first in range(0, lanes, LANES)]
    if axis == 1:
        return [[(r, c) for r in of_rows] for c in of_lanes]
    return [[(r, c) for c in of_lanes] for r in of_rows]


def _elements(strips: list[tuple[slice, slice]]) -> int:
    """As many as the registers hold that the strips take."""
    return LANES * sum(rows.stop - rows.start for rows, _ in strips)


def for_each_plane(planes: jax.Array | int, elements: int, body: Callable, carry):
    """`carry = body(indices, carry)` over several planes at a time; their number may be known on the device only.

    Args:
      planes: Their number.
      elements: Of each that the body touches.
      body: Of one step.
      carry: Before the first.
    """
    if not isinstance(planes, int):
        return jax.lax.fori_loop(0, planes, lambda p, carry: body([p], carry), carry)
    several = max(1, min(planes, PLANES, UNROLLED // elements))
    loops, rest = divmod(planes, several)
    if loops > 1:
        step = lambda i, carry: body([i * several + j for j in range(several)], carry)  # noqa: E731
        carry = jax.lax.fori_loop(0, loops, step, carry)
    else:
        rest, several = planes, 0
    return body([loops * several + j for j in range(rest)], carry) if rest else carry


def sums(
    planes: jax.Array | int, ref, axis: int, count: int, terms: Callable[[Index], tuple[jax.Array, ...]]
) -> list[jax.Array]:
    """Sums over space of `count` terms of each strip of a block shaped as `ref`, a vector each."""
    found = [_strip_sums(planes, strips, axis, count, terms) for strips in _strips(ref, axis)]
    return [parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis) for parts in zip(*found, strict=True)]


def _strip_sums(planes, strips, axis, count, terms):
    sizes = sorted({_accumulator(s, axis) for s in strips})
    zeros = {size: [jnp.zeros(size, F32)] * count for size in sizes}

    def add(indices, carry):
        for size in sizes:
            here = [(p, *s) for p in indices for s in strips if _accumulator(s, axis) == size]
            found = [[_folded(term, size) for term in terms(index)] for index in here]
            grown = [functools.reduce(jnp.add, column) for column in zip(*found, strict=True)]
            carry = carry | {size: [a + b for a, b in zip(carry[size], grown, strict=True)]}
        return carry

    totals = for_each_plane(planes, _elements(strips), add, zeros)
    reduced = [[jnp.sum(t, axis=1 - axis, keepdims=True) for t in totals[size]] for size in sizes]
    return [functools.reduce(jnp.add, column) for column in zip(*reduced, strict=True)]


def _accumulator(strip: tuple[slice, slice], axis: int) -> tuple[int, int]:
    """The shape in which strips are summed: whole rows of registers lie on each other where channels are lanes."""
    rows, lanes = (s.stop - s.start for s in strip)
    return (8 if axis == 1 and rows % 8 == 0 else rows, lanes)


def _folded(term: jax.Array, size: tuple[int, int]) -> jax.Array:
    return term if term.shape == size else jnp.sum(term.reshape(-1, *size), axis=0)


def write(planes: jax.Array | int, ref, axis: int, value: Callable[[Index], jax.Array]) -> None:
    """Writes `value` to each strip of a block."""
    for strips in _strips(ref, axis):

        def body(indices, carry, strips=strips):
            for p in indices:
                for strip in strips:
                    ref[p, *strip] = value((p, *strip)).astype(ref.dtype)
            return carry

        for_each_plane(planes, _elements(strips), body, None)


def copy(planes: jax.Array | int, source, target, first: jax.Array) -> None:
    """Copies planes of a block to where the first of them goes."""

    def body(indices, carry):
        for p in indices:
            target[first + p] = source[p]
        return carry

    for_each_plane(planes, math.prod(source.shape[1:]), body, None)


def wide(ref, index: Index) -> jax.Array:
    """A strip in float32."""
    return ref[index].astype(F32)


def part(vector: jax.Array, index: Index, axis: int) -> jax.Array:
    """The channels of a strip."""
    return vector[:, index[2]] if axis == 1 else vector[index[1]]


def _channel_and_first(groups: int, channels: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """The channel, and the first channel of the group, of every element of an indicator."""
    shape = (groups, channels) if axis == 1 else (channels, groups)
    iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32, shape)
    return iota(axis), iota(1 - axis) * (channels // groups)


def _members(groups: int, channels: int, axis: int) -> jax.Array:
    channel, first = _channel_and_first(groups, channels, axis)
    return (channel >= first) & (channel < first + channels // groups)


def _diagonal(n: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (n, n), 0) == jax.lax.broadcasted_iota(jnp.int32, (n, n), 1)


def _select_sum(mask: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=axis, keepdims=True)


def group_sums(vector: jax.Array, groups: int, axis: int) -> jax.Array:
    """The sum over the channels of its group, for every channel."""
    channels = vector.shape[axis]
    if groups == channels:
        return vector
    if groups == 1:
        return jnp.broadcast_to(jnp.sum(vector, axis=axis, keepdims=True), vector.shape)
    members = _members(groups, channels, axis)
    return _select_sum(members, _select_sum(members, vector, axis), 1 - axis)


def to_groups(vector: jax.Array, groups: int, axis: int) -> jax.Array:
    """A vector that is equal within a group as (1, groups)."""
    channels = vector.shape[axis]
    if axis == 1 and groups == channels:
        return vector
    channel, first = _channel_and_first(groups, channels, axis)
    found = _select_sum(channel == first, vector, axis)
    return found if axis == 0 else _select_sum(_diagonal(groups), found, 0)


def to_channels(row: jax.Array, channels: int, axis: int) -> jax.Array:
    """(1, groups) as a vector."""
    groups = row.shape[1]
    if axis == 1 and groups == channels:
        return row
    column = row if axis == 0 else _select_sum(_diagonal(groups), row, 1)
    return _select_sum(_members(groups, channels, axis), column, 1 - axis)
