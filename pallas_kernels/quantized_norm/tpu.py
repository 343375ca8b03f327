"""The quantized RMS norm on TPU: one read of x, and one write of a byte for each of its elements."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_blocks, _tpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._strips import LANES
from pallas_kernels._tpu_tiling import F32, Tiling
from pallas_kernels.quantized_norm import formula
from pallas_kernels.quantized_norm.formula import Quantized
from pallas_kernels.row_norm.formula import weight


def _kernel(*refs, names: tuple[str, ...], settings: Quantized, tile: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips = tile.strips

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))

        def x_v(features):
            x = _tpu_tiling.wide(ref["x"], at(features))
            w = weight(_tpu_tiling.parameter(ref.get("scale"), features, strips), settings.scale_offset)
            return x, x if w is None else x * w

        def write(features):
            ref["values"][at(features)] = formula.values(settings, x_v(features)[1], factor)

        (square,) = strips.sums(lambda features: (x_v(features)[0] ** 2,))
        (largest,) = strips.maxima(lambda features: (jnp.abs(x_v(features)[1]),))
        row_scale, factor = formula.scales(settings, tile.features, square, largest)
        strips.for_each_strip(write)
        _tpu_tiling.write_statistic(ref["row_scale"], row_scale, index, tile)

    strips.for_each_group(group)


def forward(
    settings: Quantized, x: jax.Array, scale: jax.Array | None, block: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `reference.forward`."""
    shape = before_axis_after(x.shape, settings.axes)
    dtypes = x.dtype, jnp.dtype(settings.dtype)
    group = _tpu_blocks.group_of_rows(shape[1], dtypes)
    tile = _tpu_tiling.tiling(shape, group, dtypes, 8 if shape[2] == 1 else 4 * LANES, block)
    operands = {"x": tile.tensor(x)} | ({} if scale is None else {"scale": tile.parameter(scale)})
    parameter_specs = [tile.parameter_spec] * (len(operands) - 1)
    values, row_scale = pl.pallas_call(
        functools.partial(_kernel, names=(*operands, "values", "row_scale"), settings=settings, tile=tile),
        out_shape=(
            jax.ShapeDtypeStruct(operands["x"].shape, settings.dtype),
            jax.ShapeDtypeStruct(tile.statistic_shape, F32),
        ),
        grid=tile.grid,
        in_specs=[tile.tensor_spec, *parameter_specs],
        out_specs=(tile.tensor_spec, tile.statistic_spec),
        compiler_params=tile.blocks.params(("parallel",) * len(tile.grid)),
        interpret=settings.interpret,
        name="quantized_rms_norm_fwd",
    )(*operands.values())
    if tile.lanes:
        # The last group may reach beyond the rows.
        row_scale = row_scale.reshape(-1)[: shape[0]]
    kept = [1 if a in settings.axes else size for a, size in enumerate(x.shape)]
    return values.reshape(x.shape), row_scale.reshape(kept)
