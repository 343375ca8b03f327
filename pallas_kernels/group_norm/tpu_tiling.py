"""How a TPU kernel cuts feature maps: a sample at a time, in planes of rows, by tiles of whole groups of channels.

Where the map of a sample, or of a tile of its channels, fits into VMEM, x is read once: as one block, or, where that
would need more than the default limit, in blocks that are kept until the statistics are complete. Larger maps are read
twice, the second time backwards, so that the block that is still there is not read again.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._strips import LANES
from pallas_kernels._tpu_blocks import BUDGET, LIMIT, Semantics, sublanes

Mode = Literal["whole", "kept", "twice"]
F32 = jnp.float32
# Rows of a plane where the map can be cut at will: eight registers of float32.
ROWS = 64
# Bytes of a block where a sample takes several: a copy of this size is limited by bandwidth, not by latency.
BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class Maps:
    """An array (batch, planes, rows, channels), or (batch, planes, channels, columns), and how it is cut.

    Attributes:
      shape: Of the array.
      axis: The axis of a plane that holds channels: 1 along the lanes, 0 along the sublanes.
      groups: Of its channels.
      channels: Of a tile, whole groups; all of them or whole registers of lanes.
      block: Planes per block.
      mode: "whole": a block is a sample. "kept", "twice": a sample takes two phases of several blocks, of which the
        second finds x in VMEM, or reads it again.
      vmem_limit_bytes: Where the default is too small.
    """

    shape: tuple[int, int, int, int]
    axis: int
    groups: int
    channels: int
    block: int
    mode: Mode
    vmem_limit_bytes: int | None

    @property
    def blocks(self) -> int:
        """Blocks of a sample."""
        return pl.cdiv(self.shape[1], self.block)

    @property
    def tiles(self) -> int:
        """Tiles of channels."""
        return self.shape[2 + self.axis] // self.channels

    @property
    def per_plane(self) -> int:
        """Elements of a group in a plane."""
        return self.shape[2] * self.shape[3] // self.groups

    @property
    def elements(self) -> int:
        """Elements of a group of a sample."""
        return self.shape[1] * self.per_plane

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Tiles of channels, samples, phases, blocks."""
        return self.tiles, self.shape[0], 1 if self.mode == "whole" else 2, self.blocks

    def params(self, samples: Semantics) -> pltpu.CompilerParams:
        """Compiler parameters; phases and blocks of a sample always run in order."""
        semantics: tuple[Semantics, ...] = ("parallel", samples, "arbitrary", "arbitrary")
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=self.vmem_limit_bytes)

    def second(self, index: jax.Array | int) -> jax.Array | int:
        """The block at a place in the order of the second phase."""
        return self.blocks - 1 - index if self.mode == "twice" else index

    @property
    def read_spec(self) -> pl.BlockSpec:
        """A block of a tensor that is read; in the second phase the last one stays, or they come again in reverse."""
        last = self.blocks - 1
        step = 2 if self.mode == "twice" else 1
        return self._spec(lambda phase, index: index + phase * (last - step * index))

    @property
    def written_spec(self) -> pl.BlockSpec:
        """A block of a tensor that is written in the second phase, whose first block is in place during the first."""
        return self._spec(lambda phase, index: self.second(phase * index))

    def _spec(self, index) -> pl.BlockSpec:
        shape = (None, self.block, *self.kept_shape[1:])
        return pl.BlockSpec(shape, lambda t, b, phase, k: (b, index(phase, k), 0, t))

    def tensor(self, x: jax.Array) -> jax.Array:
        """An array of x's shape as the kernel sees it."""
        if self.axis == 1:
            return x.reshape(self.shape)
        batch, planes, channels, columns = self.shape
        return jnp.swapaxes(x.reshape(batch, planes, columns, channels), 2, 3)

    def like(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """What the kernel wrote, in x's shape."""
        return (y if self.axis == 1 else jnp.swapaxes(y, 2, 3)).reshape(x.shape)

    def vector(self, channels: int) -> tuple[int, int]:
        """The shape of one number per channel, which broadcasts to a plane."""
        return (1, channels) if self.axis == 1 else (channels, 1)

    @property
    def parameter_spec(self) -> pl.BlockSpec:
        """A tile of a parameter."""
        return pl.BlockSpec(self.vector(self.channels), lambda t, b, phase, k: (0, t))

    @property
    def statistic_shape(self) -> tuple[int, int, int, int]:
        """The groups of a tile along the lanes."""
        return self.shape[0], self.tiles, 1, self.groups // self.tiles

    @property
    def statistic_spec(self) -> pl.BlockSpec:
        """The statistics of a tile of a sample."""
        return pl.BlockSpec((None, None, 1, self.groups // self.tiles), lambda t, b, phase, k: (b, t, 0, 0))

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """A tile of a sample, in whole blocks."""
        rows, lanes = (self.shape[2], self.channels) if self.axis == 1 else (self.channels, self.shape[3])
        return self.blocks * self.block, rows, lanes


def planes(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> tuple[tuple[int, int, int, int], int]:
    """The shape of an array in planes, and the axis of a plane that holds channels: a view that moves nothing.

    XLA lays an array of few channels out with the width along the lanes, where that pads less. Elsewhere tiles of 8
    rows stay whole.
    """
    batch, *space, channels = shape
    width, size = (space[-1], math.prod(space)) if space else (1, 1)
    if _padded(channels, width, dtype) < _padded(width, channels, dtype):
        return (batch, size // width, channels, width), 0
    if width % 8 == 0:
        rows = next(r for r in (ROWS, ROWS // 2, ROWS // 4, 8) if size % r == 0)
        if rows >= sublanes(dtype):
            return (batch, size // rows, rows, channels), 1
    return (batch, size // width, width, channels), 1


def maps(shape: tuple[int, ...], groups: int, reads: tuple, writes: tuple) -> Maps:
    """The cut for tensors of these dtypes, of the shape of x."""
    whole, axis = planes(shape, max(reads + writes, key=sublanes))
    count, channels = whole[1], shape[-1]
    tiles = _tiles(channels, channels // groups) if axis == 1 else [channels]

    def bytes_of(dtypes, planes, tile):
        plane = (whole[2], tile) if axis == 1 else whole[2:]
        return sum(planes * _padded(*plane, d) * jnp.dtype(d).itemsize for d in dtypes)

    def cut(tile, block, mode):
        kept = bytes_of(reads, pl.cdiv(count, block) * block, tile) if mode == "kept" else 0
        needed = 2 * bytes_of(reads + writes, block, tile) + kept
        limit = None if needed <= BUDGET + 2**20 else needed + 4 * 2**20
        return needed, Maps(whole, axis, groups, tile, block, mode, limit)

    def of_bytes(tile, size):
        largest = max(bytes_of((d,), 1, tile) for d in reads)
        return _divisor(count, max(1, min(count, size // largest)))

    candidates = [(BUDGET, cut(tile, count, "whole")) for tile in tiles]
    candidates += [(LIMIT, cut(tile, of_bytes(tile, BLOCK), "kept")) for tile in tiles]
    each = LIMIT // (2 * len(reads + writes))
    candidates += [(LIMIT, cut(tile, of_bytes(tile, size), "twice")) for tile in tiles for size in (each, BLOCK)]
    found = next((tiling for most, (needed, tiling) in candidates if needed <= most), None)
    if found is None:
        raise NotImplementedError(
            f"implementation='mosaic_tpu' takes rows of a map whole: {whole[2]} x {whole[3]} of "
            f"{jnp.dtype(reads[0]).name} need more than the {LIMIT / 2**20:.0f} MiB of VMEM that are used; use "
            "implementation='xla', or more channels with a width that is a multiple of 8, which can be cut."
        )
    return found


def _tiles(channels: int, group: int) -> list[int]:
    """Sizes of tiles of whole groups and whole registers of lanes, all channels first."""
    least = math.lcm(LANES, group)
    divisors = [tile for tile in range(channels // least * least, 0, -least) if channels % tile == 0]
    return divisors if divisors[:1] == [channels] else [channels, *divisors]


def _padded(rows: int, lanes: int, dtype: jax.typing.DTypeLike) -> int:
    return pl.cdiv(rows, sublanes(dtype)) * sublanes(dtype) * pl.cdiv(lanes, LANES) * LANES


def _divisor(count: int, most: int) -> int:
    """The largest divisor up to `most`, unless that is less than half of it: then blocks of unequal size."""
    return next((d for d in range(most, most // 2, -1) if count % d == 0), most)
