"""Projection on TPU. A norm of one row or one column is found in the block that is scaled: one read and one write."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._tpu_tiling import Tiling
from pallas_kernels.projection import _tpu_sweeps, reference, tpu_matrices


def _slices_kernel(*refs, tile: Tiling) -> None:
    w_ref, *u_refs, radius_ref, o_ref = refs
    u_ref = u_refs[0] if u_refs else None

    def group(index):
        radius = _tpu_tiling.read_statistic(radius_ref, index, tile)
        _tpu_sweeps.scale(
            tile, index, w_ref, u_ref, o_ref, reference.factor(_tpu_sweeps.squares(tile, index, w_ref, u_ref), radius)
        )

    tile.strips.for_each_group(group)


def project(
    weight: jax.Array,
    update: jax.Array | None,
    radius: jax.Array,
    axes: tuple[int, ...],
    interpret: object = False,
    block: int | None = None,
) -> jax.Array:
    """As `reference.project`."""
    over_matrices = len(axes) > 1 and axes[-1] == weight.ndim - 1
    run = tpu_matrices.project if over_matrices else _project_slices
    return run(weight, update, radius, axes, interpret, block)


def _project_slices(weight, update, radius, axes, interpret, block) -> jax.Array:
    tile = _tpu_sweeps.tiling_of(before_axis_after(weight.shape, axes), _tpu_sweeps.dtypes_of(weight, update), block)
    radius = radius.reshape(-1)
    if tile.lanes:
        radius = jnp.pad(radius, (0, tile.statistic_shape[0] * tile.blocks.group - radius.size))
    operands = [tile.tensor(a) for a in (weight, update) if a is not None]
    return pl.pallas_call(
        functools.partial(_slices_kernel, tile=tile),
        out_shape=jax.ShapeDtypeStruct(operands[0].shape, weight.dtype),
        grid=tile.grid,
        in_specs=[*[tile.tensor_spec] * len(operands), tile.statistic_spec],
        out_specs=tile.tensor_spec,
        compiler_params=tile.blocks.params(("parallel",) * len(tile.grid)),
        interpret=interpret,
        name="project_slices",
    )(*operands, radius.reshape(tile.statistic_shape)).reshape(weight.shape)
