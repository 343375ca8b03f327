"""Group norm on GPU: Triton kernels for the sums over space, XLA for what is elementwise.

The map of a sample is larger than the registers of a multiprocessor, so that it is read twice whatever the kernel; what
a kernel saves is a third read, by finding mean and squares in one sweep and, backward, both sums without atomics. The
elementwise pass XLA does at the bytes it needs, together with the activation that follows.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels._axes import wide
from pallas_kernels._strips import Slice
from pallas_kernels.group_norm import reference
from pallas_kernels.group_norm.formula import GroupNorm

F32 = jnp.float32
# Of a tile: 16 elements per thread of 8 warps. 64 channels are 128 bytes of a 16-bit dtype, a whole cache line.
ELEMENTS, CHANNELS, WARPS = 4096, 64, 8
# Tiles per program, whatever the batch: a sample has the same bits in any, and partial sums are 1 % of what is read.
TILES = 16


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How an array (batch, space, channels) is cut into chunks of whole tiles of (rows, columns)."""

    shape: tuple[int, int, int]
    rows: int
    columns: int
    tiles: int

    @property
    def size(self) -> int:
        """Rows of a chunk."""
        return self.rows * self.tiles

    @property
    def grid(self) -> tuple[int, int, int]:
        """Samples, strips of channels, chunks of space."""
        batch, space, channels = self.shape
        return batch, pl.cdiv(channels, self.columns), pl.cdiv(space, self.size)

    @property
    def partial(self) -> jax.ShapeDtypeStruct:
        """One number per channel and chunk."""
        return jax.ShapeDtypeStruct((self.shape[0], self.grid[2], self.shape[2]), F32)

    def spec(self, array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        """All of an array, rounded up to whole tiles, which masks cut."""
        whole = list(array.shape)
        if array.shape == self.shape:
            whole[1] = pl.cdiv(whole[1], self.rows) * self.rows
        whole[-1] = pl.cdiv(whole[-1], self.columns) * self.columns
        return pl.BlockSpec(tuple(whole), lambda *_: (0,) * len(whole))


def chunks(shape: tuple[int, int, int]) -> Chunks:
    """Tiles that do not depend on the batch."""
    _, space, channels = shape
    columns = min(CHANNELS, pl.next_power_of_2(channels))
    rows = min(ELEMENTS // columns, pl.next_power_of_2(space))
    return Chunks(shape, rows, columns, min(TILES, pl.cdiv(space, rows)))


class _Program:
    """What one program sees: a chunk of a strip of channels of a sample."""

    def __init__(self, cut: Chunks):
        self.cut = cut
        self.sample, strip, self.chunk = (pl.program_id(d) for d in range(3))
        self.columns = pl.ds(strip * cut.columns, cut.columns)
        self.inside = strip * cut.columns + jnp.arange(cut.columns) < cut.shape[2]

    def rows(self, tile: jax.Array) -> tuple[Slice, jax.Array]:
        """The rows of a tile of the chunk, and which of them exist, (rows, 1)."""
        first = self.chunk * self.cut.size + tile * self.cut.rows
        exist = first + jnp.arange(self.cut.rows) < self.cut.shape[1]
        return pl.ds(first, self.cut.rows), exist[:, None]

    def load(self, ref, rows: Slice, exist: jax.Array) -> jax.Array:
        """A tile in float32, zero where nothing exists."""
        window = ref.at[self.sample, rows, self.columns]
        return plt.load(window, mask=exist & self.inside[None, :], other=0.0).astype(F32)

    def load_row(self, ref) -> jax.Array:
        """One number per channel of the sample."""
        return plt.load(ref.at[self.sample, self.columns], mask=self.inside, other=0.0)[None, :]

    def store(self, ref, value: jax.Array) -> None:
        """One number per channel of the chunk."""
        plt.store(ref.at[self.sample, self.chunk, self.columns], value, mask=self.inside)


def _moments_kernel(x_ref, mean_ref, square_ref, *, cut: Chunks) -> None:
    """Mean and sum of centred squares, by Welford's update of every element of the tile on its own."""
    program = _Program(cut)

    def add(tile, carry):
        count, mean, square = carry
        rows, exist = program.rows(tile)
        x = program.load(x_ref, rows, exist)
        count = count + exist.astype(F32)
        change = jnp.where(exist, x - mean, 0.0)
        mean = mean + change / jnp.maximum(count, 1.0)
        return count, mean, square + change * (x - mean)

    zeros = jnp.zeros((cut.rows, cut.columns), F32)
    count, means, squares = jax.lax.fori_loop(0, cut.tiles, add, (jnp.zeros((cut.rows, 1), F32), zeros, zeros))
    # The first row of a chunk always exists.
    mean = jnp.sum(means * count, axis=0) / jnp.sum(count)
    between = means - mean[None, :]
    program.store(mean_ref, mean)
    program.store(square_ref, jnp.sum(squares + between * between * count, axis=0))


def _sums_kernel(x_ref, dy_ref, mean_ref, product_ref, total_ref, *, cut: Chunks) -> None:
    """Sums of (x − mean) dy and of dy."""
    program = _Program(cut)
    mean = program.load_row(mean_ref)

    def add(tile, carry):
        rows, exist = program.rows(tile)
        # dy is zero where nothing exists, and so are both terms.
        x, dy = program.load(x_ref, rows, exist), program.load(dy_ref, rows, exist)
        return carry[0] + dy * (x - mean), carry[1] + dy

    zeros = jnp.zeros((cut.rows, cut.columns), F32)
    product, total = jax.lax.fori_loop(0, cut.tiles, add, (zeros, zeros))
    program.store(product_ref, jnp.sum(product, axis=0))
    program.store(total_ref, jnp.sum(total, axis=0))


def _call(kernel, name: str, settings: GroupNorm, cut: Chunks, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    return pl.pallas_call(
        functools.partial(kernel, cut=cut),
        out_shape=(cut.partial, cut.partial),
        grid=cut.grid,
        in_specs=[cut.spec(a) for a in arrays],
        out_specs=(cut.spec(cut.partial),) * 2,
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=bool(settings.interpret),
        name=f"group_norm_{name}",
    )(*arrays)


def _flat(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(batch, space, channels)."""
    return shape[0], math.prod(shape[1:-1]), shape[-1]


def _statistics(settings: GroupNorm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and rstd of each group, from those of every channel and chunk."""
    cut = chunks(_flat(x.shape))
    means, squares = _call(_moments_kernel, "fwd", settings, cut, x.reshape(cut.shape))
    _, space, channels = cut.shape
    counts = jnp.minimum(cut.size, space - cut.size * jnp.arange(cut.grid[2], dtype=F32))[None, :, None]
    elements = space * channels // settings.groups
    over_channels = lambda v: reference.group_sums(jnp.sum(v, 1), settings.groups) / elements  # noqa: E731
    mean = over_channels(means * counts)
    between = means - reference.channels(mean, x)[:, None]
    variance = over_channels(squares + between * between * counts)
    return mean, jax.lax.rsqrt(variance + settings.epsilon)


def forward(settings: GroupNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """As `reference.forward`."""
    x, scale, bias = inputs
    mean, rstd = _statistics(settings, x)
    y = reference.normalized(wide(x), mean, rstd, scale, bias).astype(x.dtype)
    return (y,), (x, mean, rstd) if save else ()


def backward(settings: GroupNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """As `reference.backward`."""
    (x, mean, _), (dy,) = saved, cotangents
    cut = chunks(_flat(x.shape))
    arrays = x.reshape(cut.shape), dy.reshape(cut.shape), reference.channels(mean, x)
    product, total = _call(_sums_kernel, "bwd", settings, cut, *arrays)
    return reference.gradients(settings, parameters, saved, dy, (jnp.sum(product, 1), jnp.sum(total, 1)))
