"""The quantized RMS norm on GPU by Triton: a row in registers, or swept again where it is wider than a tile."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import _gpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._gpu_tiling import F32, Tile, Tiling
from pallas_kernels.quantized_norm import formula
from pallas_kernels.quantized_norm.formula import Quantized
from pallas_kernels.row_norm.formula import weight


def _rounded(q: jax.Array) -> jax.Array:
    """To the nearest integer, ties to even, which Triton has no instruction for."""
    below = jnp.floor(q)
    odd = below != 2 * jnp.floor(below * 0.5)
    return jnp.where((q - below > 0.5) | ((q - below == 0.5) & odd), below + 1, below)


def _kernel(*refs, names: tuple[str, ...], settings: Quantized, tiling: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    tile = Tile(tiling, pl.program_id(0))

    def x_v(feature):
        x = tile.load(ref["x"], feature).astype(F32)
        w = weight(_gpu_tiling.parameter(ref.get("scale"), feature, tiling), settings.scale_offset)
        return x, x if w is None else x * w

    x_v = _gpu_tiling.once(x_v, tiling)
    (square,) = tile.sums(lambda feature: (x_v(feature)[0] ** 2,))
    (largest,) = tile.maxima(lambda feature: (jnp.abs(x_v(feature)[1]),))
    row_scale, factor = formula.scales(settings, tiling.shape[1], square, largest)
    for feature in tiling.chunks:
        tile.store(ref["values"], feature, formula.values(settings, x_v(feature)[1], factor, _rounded))
    tile.store_statistic(ref["row_scale"], row_scale)


def forward(settings: Quantized, x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """As `reference.forward`."""
    tiles = _gpu_tiling.tiling(before_axis_after(x.shape, settings.axes))
    operands = {"x": tiles.tensor(x)} | ({} if scale is None else {"scale": scale.reshape(-1)})
    values = jax.ShapeDtypeStruct(operands["x"].shape, settings.dtype)
    found, row_scale = pl.pallas_call(
        functools.partial(_kernel, names=(*operands, "values", "row_scale"), settings=settings, tiling=tiles),
        out_shape=(values, jax.ShapeDtypeStruct(tiles.statistic_shape, F32)),
        grid=(tiles.tiles,),
        in_specs=[tiles.spec(a) for a in operands.values()],
        out_specs=(tiles.spec(values), pl.no_block_spec),
        compiler_params=plt.CompilerParams(num_warps=tiles.warps, num_stages=1),
        interpret=bool(settings.interpret),
        name="quantized_rms_norm_fwd",
    )(*operands.values())
    kept = [1 if a in settings.axes else size for a, size in enumerate(x.shape)]
    return found.reshape(x.shape), row_scale.reshape(kept)
