"""Projection on TPU where a norm is that of a matrix: the sum over many blocks.

A first phase of the grid reads them, a second scales them, from VMEM where all of them fit, else from HBM again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._axes import before_axis_after
from pallas_kernels._strips import LANES
from pallas_kernels._tpu_tiling import F32, Tiling
from pallas_kernels.projection import _tpu_sweeps, reference

# A matrix that waits in VMEM between its norm and its scaling, and the blocks beside it: together what v5p and tpu7x
# have to spare.
KEPT, BESIDE = 32 * 2**20, 16 * 2**20


def _add_squares(total_ref, tile: Tiling, block, *refs) -> None:
    """Adds a block's sum of squares, without what lies beyond the array."""

    def group(index):
        squares = _tpu_sweeps.squares(tile, index, *refs)
        squares = jnp.where(tile.valid(block, index), squares, 0.0) if tile.masked else squares
        total_ref[...] += jnp.sum(squares, axis=0, keepdims=True)

    @pl.when(block == 0)
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)

    tile.strips.for_each_group(group)


def _phases_kernel(*refs, tile: Tiling, update: bool, keeps: bool) -> None:
    w_ref, radius_ref, o_ref, total_ref = refs[0], *refs[1 + update : 4 + update]
    u_ref = refs[1] if update else None
    phase, block = pl.program_id(1), pl.program_id(2)
    source = (refs[-1].at[block], None) if keeps else (w_ref, u_ref)

    def keep(index):
        at = functools.partial(tile.strips.at, tile.strips.rows(index))

        def write(features):
            source[0][at(features)] = _tpu_sweeps.moved(at(features), w_ref, u_ref).astype(source[0].dtype)

        tile.strips.for_each_strip(write)

    @pl.when(phase == 0)
    def _():
        if keeps:
            tile.strips.for_each_group(keep)
        _add_squares(total_ref, tile, block, *source)

    @pl.when(phase == 1)
    def _():
        factor = reference.factor(total_ref[...], radius_ref[...])
        tile.strips.for_each_group(lambda index: _tpu_sweeps.scale(tile, index, *source, o_ref, factor))


def _matrices(weight: jax.Array, axes: tuple[int, ...]) -> tuple[int, int, int]:
    """(layers, rows, columns), which moves nothing in memory: the last axis stays on the lanes."""
    layers, size, _ = before_axis_after(weight.shape, axes)
    return layers, size // weight.shape[-1], weight.shape[-1]


def project(
    weight: jax.Array,
    update: jax.Array | None,
    radius: jax.Array,
    axes: tuple[int, ...],
    interpret: object,
    block: int | None,
) -> jax.Array:
    """As `reference.project`, for norms over the last two axes or more."""
    layers, rows, columns = _matrices(weight, axes)
    tile = _tpu_sweeps.tiling_of((rows, columns, 1), _tpu_sweeps.dtypes_of(weight, update), block)
    size, (blocks,) = tile.blocks.block, tile.grid
    operands = [a.reshape(layers, rows, columns) for a in (weight, update) if a is not None]
    kept = jax.ShapeDtypeStruct((blocks, size, columns), weight.dtype if update is None else F32)
    kept_bytes = blocks * size * -(-columns // LANES) * LANES * kept.dtype.itemsize
    # One block stays where it is anyway.
    keeps = blocks > 1 and kept_bytes <= KEPT
    params = tile.blocks if not keeps else tile.blocks._replace(vmem_limit_bytes=kept_bytes + BESIDE)

    def block_read(i, phase, j):
        # The second phase has all in VMEM: it stays at the last block of the first.
        return (i, jnp.where(phase == 0, j, blocks - 1) if keeps else j, 0)

    return pl.pallas_call(
        functools.partial(_phases_kernel, tile=tile, update=update is not None, keeps=keeps),
        out_shape=jax.ShapeDtypeStruct(operands[0].shape, weight.dtype),
        grid=(layers, 2, blocks),
        in_specs=[
            *[pl.BlockSpec((None, size, columns), block_read)] * len(operands),
            pl.BlockSpec((None, 1, 1), lambda i, phase, j: (i, 0, 0)),
        ],
        # Nothing is written in the first phase, so that all of it stays at the block the second begins with.
        out_specs=pl.BlockSpec((None, size, columns), lambda i, phase, j: (i, phase * j, 0)),
        scratch_shapes=[pltpu.VMEM((1, 1), F32), *([pltpu.VMEM(kept.shape, kept.dtype)] if keeps else [])],
        compiler_params=params.params(("parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
        name="project_matrices",
    )(*operands, radius.reshape(layers, 1, 1)).reshape(weight.shape)
