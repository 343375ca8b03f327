"""How a TPU kernel cuts an array into blocks of whole rows, along the lanes or, for another axis, the sublanes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_blocks
from pallas_kernels._strips import Slice, Strips
from pallas_kernels._tpu_blocks import Blocks

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an array (before, features, after) is cut: (rows, features) for after = 1, else (features, columns)."""

    before: int
    features: int
    after: int
    strips: Strips
    blocks: Blocks

    @property
    def lanes(self) -> bool:
        """Whether features lie along the lanes."""
        return self.after == 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks, of all rows or of the columns of each slab."""
        if self.lanes:
            return (pl.cdiv(self.before, self.blocks.block),)
        return (self.before, pl.cdiv(self.after, self.blocks.block))

    @property
    def masked(self) -> bool:
        """Whether the last block reaches beyond the array."""
        return (self.before if self.lanes else self.after) % self.blocks.block != 0

    def valid(self, block: jax.Array, index: jax.Array | int) -> jax.Array:
        """Which rows of a group of a block exist, shaped as a statistic."""
        size = self.before if self.lanes else self.after
        shape = (self.blocks.group, 1) if self.lanes else (1, self.blocks.group)
        first = block * self.blocks.block + index * self.blocks.group
        return jax.lax.broadcasted_iota(jnp.int32, shape, 0 if self.lanes else 1) + first < size

    def tensor(self, array: jax.Array) -> jax.Array:
        """An array of x's shape as the kernel sees it."""
        return array.reshape((self.before, self.features) if self.lanes else (self.before, self.features, self.after))

    @property
    def tensor_spec(self) -> pl.BlockSpec:
        """A block of whole rows."""
        if self.lanes:
            return pl.BlockSpec((self.blocks.block, self.features), lambda i: (i, 0))
        return pl.BlockSpec((None, self.features, self.blocks.block), lambda i, j: (i, 0, j))

    def parameter(self, array: jax.Array) -> jax.Array:
        """A parameter that broadcasts to a block."""
        return array.reshape((1, -1) if self.lanes else (-1, 1))

    @property
    def parameter_spec(self) -> pl.BlockSpec:
        """All of a parameter, in every step."""
        return whole((1, self.features) if self.lanes else (self.features, 1), self.grid)

    @property
    def statistic_shape(self) -> tuple[int, ...]:
        """Groups of rows along the lanes: (rows, 1) would be padded to 128 lanes in HBM."""
        if self.lanes:
            return (pl.cdiv(self.before, self.blocks.group), 1, self.blocks.group)
        return (self.before, 1, self.after)

    @property
    def statistic_spec(self) -> pl.BlockSpec:
        """The statistics of a block's rows."""
        if self.lanes:
            return pl.BlockSpec((self.strips.groups, 1, self.blocks.group), lambda i: (i, 0, 0))
        return pl.BlockSpec((None, 1, self.blocks.block), lambda i, j: (i, 0, j))

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """A parameter's gradient before the sum over the last sublanes or lanes, which XLA does."""
        return (8, self.features) if self.lanes else (self.features, self.blocks.group)

    @property
    def sums_spec(self) -> pl.BlockSpec:
        """All of it, in every step."""
        return whole(self.sums_shape, self.grid)


def whole(shape: tuple[int, ...], grid: tuple[int, ...]) -> pl.BlockSpec:
    """All of an array, in every step."""
    return pl.BlockSpec(shape, (lambda i: (0, 0)) if len(grid) == 1 else (lambda i, j: (0, 0)))


def tiling(shape: tuple[int, int, int], group: int, dtypes: tuple, fixed: int, block: int | None) -> Tiling:
    """The tiling for these blocked operands; see `_tpu_blocks.row_blocks`."""
    before, features, after = shape
    if after == 1:
        blocks = _tpu_blocks.row_blocks(before, features, group, dtypes, fixed, block)
    else:
        blocks = _tpu_blocks.column_blocks(features, after, dtypes, fixed, block)
    strips = Strips(1 if after == 1 else 0, features, blocks.group, pl.cdiv(blocks.block, blocks.group))
    return Tiling(before, features, after, strips, blocks)


def _to_lanes(column: jax.Array) -> jax.Array:
    """(rows, 1) to (1, rows) by a diagonal: a select and a sum, exact, and cheaper than a transpose."""
    return jnp.sum(jnp.where(_diagonal(column.shape[0]), column, 0.0), axis=0, keepdims=True)


def _to_sublanes(row: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(_diagonal(row.shape[1]), row, 0.0), axis=1, keepdims=True)


def _diagonal(n: int) -> jax.Array:
    index = functools.partial(jax.lax.broadcasted_iota, jnp.int32, (n, n))
    return index(0) == index(1)


def write_statistic(ref, value: jax.Array | None, group: jax.Array | int, tile: Tiling) -> None:
    """Writes a statistic of a group."""
    assert value is not None
    if tile.lanes:
        ref[group] = _to_lanes(value)
    else:
        ref[0:1, tile.strips.rows(group)] = value


def read_statistic(ref, group: jax.Array | int, tile: Tiling) -> jax.Array:
    """A statistic of a group, which broadcasts to its strips."""
    return _to_sublanes(ref[group]) if tile.lanes else ref[0:1, tile.strips.rows(group)]


def accumulate(ref, features: Slice, term: jax.Array, valid: jax.Array | None, tile: Tiling) -> None:
    """Adds a strip's terms, those of rows that exist, to a parameter's gradient."""
    term = term if valid is None else jnp.where(valid, term, 0.0)
    if tile.lanes and ref.shape[0] == 1:
        ref[:, features] += jnp.sum(term, axis=0, keepdims=True)
    elif tile.lanes:
        ref[:, features] += jnp.sum(term.reshape(-1, 8, term.shape[1]), axis=0)
    else:
        ref[features, : term.shape[1]] += term


def wide(ref, index) -> jax.Array:
    """A strip in float32."""
    return ref[index].astype(F32)


def parameter(ref, features: Slice, strips: Strips) -> jax.Array | None:
    """A strip of a parameter in float32, which broadcasts to the strips of a tensor."""
    return None if ref is None else wide(ref, strips.of_features(features))
