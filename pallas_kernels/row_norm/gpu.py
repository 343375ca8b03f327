"""Row norms on GPU by Triton: tiles in registers, statistics and parameter gradients in float32.

A row that fits a tile is read once; a wider one is swept again, which the caches serve. The backward pass is a fixed
number of programs, each with its own sums of the parameters' gradients: one row of partial sums per program, whatever
the number of rows.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels._axes import before_axis_after
from pallas_kernels.row_norm import formula
from pallas_kernels.row_norm.formula import RowNorm

F32 = jnp.float32
# Elements of a tile, and features of it at most; 16 elements per thread keep two tiles and the sums in registers.
TILE, FEATURES = 4096, 8192
PER_THREAD = 16
# Two programs for each of the 132 multiprocessors of an H100 or H200, or one where there are two parameters' sums: 4 %
# of the bytes of a bfloat16 array of 8192 rows.
PROGRAMS = 264


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an array (before, features, after) is cut into tiles of (features, rows) or, for after = 1, (rows, features).

    Attributes:
      shape: Of the whole array.
      features: Of a tile, a power of two; several tiles make a row where this is smaller.
      rows: Of a tile, a power of two that does not depend on their number: neither does the order of any sum.
    """

    shape: tuple[int, int, int]
    features: int
    rows: int

    @property
    def axis(self) -> int:
        """The axis of the tile that holds features."""
        return 1 if self.shape[2] == 1 else 0

    @property
    def chunks(self) -> range:
        """The first feature of each tile of a row."""
        return range(0, self.shape[1], self.features)

    @property
    def side(self) -> int:
        """How many rows lie beside each other in the array; for after = 1 all of them."""
        return self.shape[0] if self.axis == 1 else self.shape[2]

    @property
    def tiles(self) -> int:
        """Tiles that hold the first feature."""
        return pl.cdiv(self.side, self.rows) * (1 if self.axis == 1 else self.shape[0])

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return max(1, min(32, self.features * self.rows // (32 * PER_THREAD)))

    def tensor(self, array: jax.Array) -> jax.Array:
        """An array of x's shape as the kernel sees it."""
        return array.reshape(self.shape[:2] if self.axis == 1 else self.shape)

    def statistic(self, array: jax.Array) -> jax.Array:
        """A (before, 1, after) statistic as the kernel sees it."""
        return array.reshape(self.statistic_shape)

    @property
    def statistic_shape(self) -> tuple[int, ...]:
        """One number per row."""
        return self.shape[:1] if self.axis == 1 else (self.shape[0], self.shape[2])


def tiling(shape: tuple[int, int, int], size: int = TILE) -> Tiling:
    """Tiles of about `size` elements; columns are 32 wide, a whole transaction of a 16-bit dtype's warp."""
    _, features, after = shape
    width = pl.next_power_of_2(features)
    if after == 1:
        width = min(width, FEATURES)
        return Tiling(shape, width, max(1, size // width))
    rows = min(32, pl.next_power_of_2(after))
    return Tiling(shape, min(width, size // rows), rows)


class Tile:
    """One tile of the grid inside a kernel: its masks, and what is loaded and stored through them."""

    def __init__(self, tiling: Tiling, index: jax.Array):
        self.tiling = tiling
        per_slab = pl.cdiv(tiling.side, tiling.rows)
        whole = tiling.axis == 1
        self.slab, beside = (None, index) if whole else (jax.lax.div(index, per_slab), jax.lax.rem(index, per_slab))
        self.rows = pl.ds(beside * tiling.rows, tiling.rows)
        # Also false for tiles beyond the last, which the last round of a fixed number of programs may have.
        self.exist = (beside * tiling.rows + jnp.arange(tiling.rows) < tiling.side) & (index < tiling.tiles)

    def mask(self, feature: int) -> jax.Array:
        """Which elements exist."""
        axis = self.tiling.axis
        features = feature + jnp.arange(self.tiling.features) < self.tiling.shape[1]
        return jnp.expand_dims(features, 1 - axis) & jnp.expand_dims(self.exist, axis)

    def _window(self, ref, feature: int):
        features = pl.ds(feature, self.tiling.features)
        return ref.at[self.rows, features] if self.slab is None else ref.at[self.slab, features, self.rows]

    def load(self, ref, feature: int) -> jax.Array:
        """A tile of a tensor, zero where nothing exists."""
        return plt.load(self._window(ref, feature), mask=self.mask(feature), other=0.0)

    def store(self, ref, feature: int, value: jax.Array) -> None:
        """Writes a tile of a tensor."""
        plt.store(self._window(ref, feature), value.astype(ref.dtype), mask=self.mask(feature))

    def _statistics(self, ref):
        return ref.at[self.rows] if self.slab is None else ref.at[self.slab, self.rows]

    def load_statistic(self, ref) -> jax.Array:
        """A statistic that broadcasts to the tile."""
        return jnp.expand_dims(plt.load(self._statistics(ref), mask=self.exist, other=0.0), self.tiling.axis)

    def store_statistic(self, ref, value: jax.Array | None) -> None:
        """Writes a statistic."""
        assert value is not None
        plt.store(self._statistics(ref), jnp.squeeze(value, self.tiling.axis), mask=self.exist)

    def sums(self, terms) -> tuple[jax.Array, ...]:
        """Sums of `terms(feature)` over all tiles of a row."""
        totals = None
        for feature in self.tiling.chunks:
            found = [jnp.where(self.mask(feature), term, 0.0) for term in terms(feature)]
            found = tuple(jnp.sum(term, axis=self.tiling.axis, keepdims=True) for term in found)
            totals = found if totals is None else tuple(a + b for a, b in zip(totals, found, strict=True))
        assert totals is not None
        return totals


def _parameter(ref, feature: int, tiling: Tiling) -> jax.Array | None:
    if ref is None:
        return None
    mask = feature + jnp.arange(tiling.features) < tiling.shape[1]
    values = plt.load(ref.at[pl.ds(feature, tiling.features)], mask=mask, other=0.0)
    return jnp.expand_dims(values.astype(F32), 1 - tiling.axis)


def _once(function, tiling: Tiling):
    """A row of one tile stays in registers; of a wider row each sweep loads every tile again."""
    return functools.cache(function) if len(tiling.chunks) == 1 else function


def _forward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tiling: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    tile, kind = Tile(tiling, pl.program_id(0)), settings.kind

    def load(feature):
        x = tile.load(ref["x"], feature)
        if "sum" in ref:
            x = x.astype(ref["sum"].dtype) + tile.load(ref["residual"], feature)
        return x.astype(F32)

    load = _once(load, tiling)
    sums = lambda terms: tile.sums(lambda feature: terms(load(feature)))  # noqa: E731
    shift, rstd = formula.statistics(kind, tiling.shape[1], settings.epsilon, sums)
    for feature in tiling.chunks:
        x = load(feature)
        if "sum" in ref:
            tile.store(ref["sum"], feature, x)
        weight = formula.weight(_parameter(ref.get("scale"), feature, tiling), settings.scale_offset)
        bias = _parameter(ref.get("bias"), feature, tiling)
        tile.store(ref["y"], feature, formula.output(formula.centred(kind, x, shift), rstd, weight, bias))
    for name, value in (("shift", shift), ("rstd", rstd)):
        if name in ref:
            tile.store_statistic(ref[name], value)


def _call(kernel, name: str, settings: RowNorm, tiling: Tiling, programs: int, inputs: dict, outputs: dict) -> dict:
    body = functools.partial(kernel, names=(*inputs, *outputs), settings=settings, tiling=tiling)
    results = pl.pallas_call(
        body,
        out_shape=tuple(outputs.values()),
        grid=(programs,),
        compiler_params=plt.CompilerParams(num_warps=tiling.warps, num_stages=1),
        interpret=bool(settings.interpret),
        name=f"{settings.kind}_norm_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def forward(settings: RowNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """As `reference.forward`."""
    *tensors, scale, bias = inputs
    whole = tensors[-1]
    tiles = tiling(before_axis_after(whole.shape, settings.axes))
    operands = dict(zip(("x", "residual"), map(tiles.tensor, tensors), strict=False))
    operands |= {n: p.reshape(-1) for n, p in (("scale", scale), ("bias", bias)) if p is not None}
    like = lambda array: jax.ShapeDtypeStruct(tiles.tensor(array).shape, array.dtype)  # noqa: E731
    results = {"sum": like(whole)} if settings.residual else {}
    results["y"] = like(tensors[0])
    if save:
        statistics = ("rstd",) if settings.kind == "rms" else ("shift", "rstd")
        results |= dict.fromkeys(statistics, jax.ShapeDtypeStruct(tiles.statistic_shape, F32))
    found = _call(_forward_kernel, "fwd", settings, tiles, tiles.tiles, operands, results)
    outputs = tuple(found[n].reshape(whole.shape) for n in ("sum", "y") if n in found)
    if not save:
        return outputs, ()
    before, _, after = tiles.shape
    shift, rstd = (found[n].reshape(before, 1, after) if n in found else None for n in ("shift", "rstd"))
    return outputs, (outputs[0] if settings.residual else whole, shift, rstd)


def _backward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tiling: Tiling, programs: int) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    program, kind = pl.program_id(0), settings.kind
    wanted = [name for name in ("dscale", "dbias") if name in ref]

    def over_rows(term):
        # Columns are many and rows of a tile are few: only the former are summed at once.
        return term if tiling.axis == 1 else jnp.sum(term, axis=1, keepdims=True)

    def one(index, accumulators):
        tile = Tile(tiling, index)
        rstd = tile.load_statistic(ref["rstd"])
        shift = tile.load_statistic(ref["shift"]) if "shift" in ref else None

        def load(feature):
            x, dy = tile.load(ref["x"], feature).astype(F32), tile.load(ref["dy"], feature).astype(F32)
            weight = formula.weight(_parameter(ref.get("scale"), feature, tiling), settings.scale_offset)
            return x, dy if weight is None else dy * weight, dy

        load = _once(load, tiling)
        sums = lambda terms: tile.sums(lambda feature: terms(*load(feature)[:2]))  # noqa: E731
        mean, slope = formula.projections(kind, tiling.shape[1], shift, rstd, sums)
        grown = []
        for feature, accumulator in zip(tiling.chunks, accumulators, strict=True):
            x, g, dy = load(feature)
            dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
            if "dsum" in ref:
                dx = dx + tile.load(ref["dsum"], feature).astype(F32)
            tile.store(ref["dx"], feature, dx)
            # dy is zero where nothing exists, and so are both terms.
            terms = {"dscale": dy * (formula.centred(kind, x, shift) * rstd), "dbias": dy}
            grown.append({n: accumulator[n] + over_rows(terms[n]) for n in wanted})
        return tuple(grown)

    shape = (tiling.rows, tiling.features) if tiling.axis == 1 else (tiling.features, 1)
    zeros = tuple({n: jnp.zeros(shape, F32) for n in wanted} for _ in tiling.chunks)
    rounds = pl.cdiv(tiling.tiles, programs)
    if rounds == 1:
        totals = one(program, zeros)
    else:
        totals = jax.lax.fori_loop(0, rounds, lambda r, sums: one(program + r * programs, sums), zeros)
    for feature, accumulator in zip(tiling.chunks, totals, strict=True):
        mask = feature + jnp.arange(tiling.features) < tiling.shape[1]
        for name in wanted:
            window = ref[name].at[program, pl.ds(feature, tiling.features)]
            plt.store(window, jnp.sum(accumulator[name], axis=1 - tiling.axis), mask=mask)


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """As `reference.backward`."""
    (whole, shift, rstd), (scale, bias) = saved, parameters
    wanted = [n for n, p in (("dscale", scale), ("dbias", bias)) if p is not None]
    tiles = tiling(before_axis_after(whole.shape, settings.axes), TILE * max(1, len(wanted)))
    # Without sums to keep there is no reason to stay.
    programs = min(tiles.tiles, PROGRAMS // len(wanted)) if wanted else tiles.tiles
    operands = {"x": tiles.tensor(whole), "dy": tiles.tensor(cotangents[-1]), "rstd": tiles.statistic(rstd)}
    operands |= {} if shift is None else {"shift": tiles.statistic(shift)}
    operands |= {} if scale is None else {"scale": scale.reshape(-1)}
    operands |= {"dsum": tiles.tensor(cotangents[0])} if settings.residual else {}
    results = {"dx": jax.ShapeDtypeStruct(operands["x"].shape, whole.dtype)}
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct((programs, tiles.shape[1]), F32))
    kernel = functools.partial(_backward_kernel, programs=programs)
    found = _call(kernel, "bwd", settings, tiles, programs, operands, results)
    dx = found["dx"].reshape(whole.shape)
    sums = [
        None if p is None else found[n].sum(0).reshape(p.shape)
        for n, p in zip(("dscale", "dbias"), parameters, strict=True)
    ]
    return (dx.astype(cotangents[-1].dtype), dx, *sums) if settings.residual else (dx, *sums)
