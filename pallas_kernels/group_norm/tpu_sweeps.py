"""What a TPU kernel does with a block in VMEM: sweeps over its planes, and sums over the channels of a group.

Channels lie along the lanes, so that a sum over space is one number per lane. The groups are a (groups, channels)
indicator: a select and a sum along the lanes, then along the sublanes, exact in float32 where a product on the matrix
unit would round, and of a few registers beside the hundreds of a map.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels._strips import LANES
from pallas_kernels._tpu_blocks import sublanes

F32 = jnp.float32
# Rows of a strip; rows and planes per step of a loop, whose sums are added before they meet the accumulator.
STRIP, UNROLLED, PLANES = 64, 256, 8
# A strip of rows of a plane and of channels: `(plane, rows, channels)`.
Index = tuple[jax.Array | int, slice, slice]


def lanes(channels: int) -> list[slice]:
    """Strips of channels."""
    return [slice(first, min(first + LANES, channels)) for first in range(0, channels, LANES)]


def row_strips(rows: int, unit: int) -> list[slice]:
    """Strips of rows: whole registers of `unit` rows, then the rest."""
    full = rows // unit * unit
    found = [slice(first, min(first + STRIP, full)) for first in range(0, full, STRIP)]
    return found + ([slice(full, rows)] if full < rows else [])


def for_each_plane(planes: jax.Array | int, rows: int, body: Callable, carry):
    """`carry = body(indices, carry)` over several planes at a time; their number may be known on the device only."""
    if not isinstance(planes, int):
        return jax.lax.fori_loop(0, planes, lambda p, carry: body([p], carry), carry)
    several = max(1, min(planes, PLANES, UNROLLED // rows))
    loops, rest = divmod(planes, several)
    if loops > 1:
        step = lambda i, carry: body([i * several + j for j in range(several)], carry)  # noqa: E731
        carry = jax.lax.fori_loop(0, loops, step, carry)
    else:
        rest, several = planes, 0
    return body([loops * several + j for j in range(rest)], carry) if rest else carry


def sums(planes: jax.Array | int, ref, count: int, terms: Callable[[Index], tuple[jax.Array, ...]]) -> list[jax.Array]:
    """Sums over space of `count` terms of each strip of a block shaped as `ref`, (1, channels) each."""
    _, rows, channels = ref.shape
    strips = row_strips(rows, sublanes(ref.dtype))
    found = [_strip_sums(planes, rows, strips, of, count, terms) for of in lanes(channels)]
    return [parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]


def _strip_sums(planes, rows, strips, of, count, terms):
    width = of.stop - of.start
    heights = sorted({_height(s) for s in strips})
    zeros = {h: [jnp.zeros((h, width), F32)] * count for h in heights}

    def add(indices, carry):
        for height in heights:
            found = [
                [_folded(term, height) for term in terms((p, s, of))]
                for p in indices
                for s in strips
                if _height(s) == height
            ]
            grown = [functools.reduce(jnp.add, column) for column in zip(*found, strict=True)]
            carry = carry | {height: [a + b for a, b in zip(carry[height], grown, strict=True)]}
        return carry

    totals = for_each_plane(planes, rows, add, zeros)
    reduced = [[jnp.sum(t, axis=0, keepdims=True) for t in totals[h]] for h in heights]
    return [functools.reduce(jnp.add, column) for column in zip(*reduced, strict=True)]


def _height(rows: slice) -> int:
    count = rows.stop - rows.start
    return 8 if count % 8 == 0 else count


def _folded(term: jax.Array, height: int) -> jax.Array:
    return term if term.shape[0] == height else jnp.sum(term.reshape(-1, height, term.shape[1]), axis=0)


def write(planes: jax.Array | int, ref, value: Callable[[Index], jax.Array]) -> None:
    """Writes `value` to each strip of a block."""
    _, rows, channels = ref.shape
    strips = row_strips(rows, sublanes(ref.dtype))
    for of in lanes(channels):

        def body(indices, carry, of=of):
            for p in indices:
                for s in strips:
                    ref[p, s, of] = value((p, s, of)).astype(ref.dtype)
            return carry

        for_each_plane(planes, rows, body, None)


def copy(planes: jax.Array | int, source, target, first: jax.Array) -> None:
    """Copies planes of a block to where the first of them goes."""

    def body(indices, carry):
        for p in indices:
            target[first + p] = source[p]
        return carry

    for_each_plane(planes, source.shape[1], body, None)


def wide(ref, index: Index) -> jax.Array:
    """A strip in float32."""
    return ref[index].astype(F32)


def _members(groups: int, channels: int) -> jax.Array:
    """Which channels belong to which group."""
    size = channels // groups
    first = jax.lax.broadcasted_iota(jnp.int32, (groups, channels), 0) * size
    channel = jax.lax.broadcasted_iota(jnp.int32, (groups, channels), 1)
    return (channel >= first) & (channel < first + size)


def _diagonal(n: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (n, n), 0) == jax.lax.broadcasted_iota(jnp.int32, (n, n), 1)


def _select_sum(mask: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=axis, keepdims=True)


def group_sums(row: jax.Array, groups: int) -> jax.Array:
    """(1, channels) to the sum over the channels of the group, still (1, channels)."""
    channels = row.shape[1]
    if groups == channels:
        return row
    if groups == 1:
        return jnp.broadcast_to(jnp.sum(row, axis=1, keepdims=True), row.shape)
    members = _members(groups, channels)
    return _select_sum(members, _select_sum(members, row, 1), 0)


def to_groups(row: jax.Array, groups: int) -> jax.Array:
    """(1, channels), equal within a group, to (1, groups)."""
    channels = row.shape[1]
    if groups == channels:
        return row
    size = channels // groups
    first = jax.lax.broadcasted_iota(jnp.int32, (groups, channels), 0) * size
    picked = jax.lax.broadcasted_iota(jnp.int32, (groups, channels), 1) == first
    return _select_sum(_diagonal(groups), _select_sum(picked, row, 1), 0)


def to_channels(row: jax.Array, channels: int) -> jax.Array:
    """(1, groups) to (1, channels)."""
    groups = row.shape[1]
    if groups == channels:
        return row
    return _select_sum(_members(groups, channels), _select_sum(_diagonal(groups), row, 1), 0)
