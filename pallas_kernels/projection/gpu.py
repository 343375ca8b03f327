"""Projection on GPU by Triton, of rows or columns that one program sweeps.

What is longer than a tile is swept twice, and the second sweep is served by the caches only as far as they reach: not
for columns of thousands of numbers, all of which are under way at once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import _gpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._gpu_tiling import F32, Tile, Tiling
from pallas_kernels.projection import reference


def _kernel(*refs, tiling: Tiling) -> None:
    *tensors, radius_ref, o_ref = refs
    tile = Tile(tiling, pl.program_id(0))

    def load(feature):
        first, *rest = [tile.load(ref, feature).astype(F32) for ref in tensors]
        return first + rest[0] if rest else first

    moved = _gpu_tiling.once(load, tiling)

    def add(feature, total):
        return total + jnp.square(jnp.where(tile.mask(feature), moved(feature), 0.0))

    def write(feature, _):
        tile.store(o_ref, feature, moved(feature) * factor)

    shape = (tiling.rows, tiling.features) if tiling.axis == 1 else (tiling.features, tiling.rows)
    squares = jnp.sum(_sweep(tiling, add, jnp.zeros(shape, F32)), axis=tiling.axis, keepdims=True)
    factor = reference.factor(squares, tile.load_statistic(radius_ref))
    _sweep(tiling, write, None)


def _sweep(tiling: Tiling, body, carry):
    """A loop over the tiles of a row; one as long as a weight's column would be too much code."""
    if len(tiling.chunks) == 1:
        return body(0, carry)
    return jax.lax.fori_loop(0, len(tiling.chunks), lambda i, carry: body(i * tiling.features, carry), carry)


def project(
    weight: jax.Array, update: jax.Array | None, radius: jax.Array, axes: tuple[int, ...], interpret: object = False
) -> jax.Array:
    """As `reference.project`, for norms along one axis or within the leading ones."""
    if len(axes) > 1 and axes[-1] == weight.ndim - 1:
        raise NotImplementedError(
            f"implementation='triton' finds norms of single rows or columns, got axes {axes} of shape {weight.shape}: "
            "a norm of a matrix takes two reads of it by any implementation; use implementation='xla'."
        )
    tiles = _gpu_tiling.tiling(before_axis_after(weight.shape, axes))
    operands = [tiles.tensor(a) for a in (weight, update) if a is not None]
    return pl.pallas_call(
        functools.partial(_kernel, tiling=tiles),
        out_shape=jax.ShapeDtypeStruct(operands[0].shape, weight.dtype),
        grid=(tiles.tiles,),
        in_specs=[*map(tiles.spec, operands), pl.no_block_spec],
        out_specs=tiles.spec(operands[0]),
        compiler_params=plt.CompilerParams(num_warps=tiles.warps, num_stages=1),
        interpret=bool(interpret),
        name="project_slices",
    )(*operands, tiles.statistic(radius)).reshape(weight.shape)
