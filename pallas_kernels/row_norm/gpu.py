"""Row norms on GPU by Triton: tiles in registers, statistics and parameter gradients in float32.

A row that fits a tile is read once; a wider one is swept again, which the caches serve. The backward pass is a fixed
number of programs, each with its own sums of the parameters' gradients: one row of partial sums per program, whatever
the number of rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import _gpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._gpu_tiling import F32, Tile, Tiling
from pallas_kernels.row_norm import formula, gate
from pallas_kernels.row_norm.formula import RowNorm

# Two programs for each of the 132 multiprocessors of an H100 or H200, or one where there are two parameters' sums: 4 %
# of the bytes of a bfloat16 array of 8192 rows.
PROGRAMS = 264


def _forward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tiling: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    tile, kind = Tile(tiling, *_first(settings, tiling.tiles_beside)), settings.kind

    def load(feature):
        x = tile.load(ref["x"], feature)
        if "sum" in ref:
            x = x.astype(ref["sum"].dtype) + tile.load(ref["residual"], feature)
        return gate.before(settings.gate, x.astype(F32), _gate(ref, tile, feature))

    load = _gpu_tiling.once(load, tiling)
    sums = lambda terms: tile.sums(lambda feature: terms(load(feature)))  # noqa: E731
    shift, rstd = formula.statistics(kind, tiling.shape[1], settings.epsilon, sums)
    for feature in tiling.chunks:
        x = load(feature)
        if "sum" in ref:
            tile.store(ref["sum"], feature, x)
        scale, bias = (_gpu_tiling.parameter(ref.get(n), feature, tiling, tile.sample) for n in ("scale", "bias"))
        weight = formula.weight(scale, settings.scale_offset)
        y = formula.output(formula.centred(kind, x, shift), rstd, weight, bias)
        tile.store(ref["y"], feature, gate.after(settings.gate, y, _gate(ref, tile, feature)))
    for name, value in (("shift", shift), ("rstd", rstd)):
        if name in ref:
            tile.store_statistic(ref[name], value)


def _first(settings: RowNorm, per_sample: int) -> tuple[jax.Array, jax.Array | None]:
    """The first tile of a program and, where parameters are a sample's own, its sample."""
    program = pl.program_id(0)
    return (jax.lax.rem(program, per_sample), jax.lax.div(program, per_sample)) if settings.samples else (program, None)


def _gate(ref: dict[str, Any], tile: Tile, feature: int) -> jax.Array | None:
    return tile.load(ref["gate"], feature).astype(F32) if "gate" in ref else None


def _call(kernel, name: str, settings: RowNorm, tiling: Tiling, programs: int, inputs: dict, outputs: dict) -> dict:
    body = functools.partial(kernel, names=(*inputs, *outputs), settings=settings, tiling=tiling)

    def specs(arrays):
        return tuple(pl.no_block_spec if n in ("shift", "rstd") else tiling.spec(a) for n, a in arrays.items())

    results = pl.pallas_call(
        body,
        out_shape=tuple(outputs.values()),
        grid=(programs,),
        in_specs=specs(inputs),
        out_specs=specs(outputs),
        compiler_params=plt.CompilerParams(num_warps=tiling.warps, num_stages=1),
        interpret=bool(settings.interpret),
        name=f"{settings.name}_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _tiling(settings: RowNorm, x: jax.Array, size: int, split: int = 1) -> Tiling:
    samples = x.shape[0] if settings.samples else 1
    return _gpu_tiling.tiling(before_axis_after(x.shape, settings.axes), size, samples=samples, split=split)


def _parameter(settings: RowNorm, parameter: jax.Array) -> jax.Array:
    return parameter if settings.samples else parameter.reshape(-1)


def forward(settings: RowNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """As `reference.forward`."""
    *tensors, scale, bias = inputs
    whole = tensors[-1] if settings.residual else tensors[0]
    tiles = _tiling(settings, whole, _gpu_tiling.TILE)
    operands = dict(zip(settings.tensors, map(tiles.tensor, tensors), strict=True))
    operands |= {n: _parameter(settings, p) for n, p in (("scale", scale), ("bias", bias)) if p is not None}
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
    kept = tensors if settings.gate else outputs[:1] if settings.residual else (whole,)
    return outputs, (*kept, shift, rstd)


def _backward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tiling: Tiling, per_sample: int) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    program, kind = pl.program_id(0), settings.kind
    first, sample = _first(settings, per_sample)
    wanted = [name for name in ("dscale", "dbias") if name in ref]

    def over_rows(term):
        # Columns are many and rows of a tile are few: only the former are summed at once.
        return term if tiling.axis == 1 else jnp.sum(term, axis=1, keepdims=True)

    def weight_of(feature):
        return formula.weight(_gpu_tiling.parameter(ref.get("scale"), feature, tiling, sample), settings.scale_offset)

    def one(index, accumulators):
        tile = Tile(tiling, index, sample)
        rstd = tile.load_statistic(ref["rstd"])
        shift = tile.load_statistic(ref["shift"]) if "shift" in ref else None

        def load(feature):
            raw, dy = tile.load(ref["x"], feature).astype(F32), tile.load(ref["dy"], feature).astype(F32)
            z, weight = _gate(ref, tile, feature), weight_of(feature)
            x, d = gate.before(settings.gate, raw, z), gate.after(settings.gate, dy, z)
            return x, d if weight is None else d * weight, d, raw, dy, z

        load = _gpu_tiling.once(load, tiling)
        sums = lambda terms: tile.sums(lambda feature: terms(*load(feature)[:2]))  # noqa: E731
        mean, slope = formula.projections(kind, tiling.shape[1], shift, rstd, sums)
        grown = []
        for feature, accumulator in zip(tiling.chunks, accumulators, strict=True):
            x, g, d, raw, dy, z = load(feature)
            dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
            u = formula.centred(kind, x, shift)
            if settings.gate is not None and z is not None:
                y = formula.output(u, rstd, weight_of(feature), None)
                dx, dgate = gate.gradients(settings.gate, raw, z, y, dy, dx)
                tile.store(ref["dgate"], feature, dgate)
            if "dsum" in ref:
                dx = dx + tile.load(ref["dsum"], feature).astype(F32)
            tile.store(ref["dx"], feature, dx)
            # d is zero where nothing exists, and so are both terms.
            terms = {"dscale": d * (u * rstd), "dbias": d}
            grown.append({n: accumulator[n] + over_rows(terms[n]) for n in wanted})
        return tuple(grown)

    shape = (tiling.rows, tiling.features) if tiling.axis == 1 else (tiling.features, 1)
    zeros = tuple({n: jnp.zeros(shape, F32) for n in wanted} for _ in tiling.chunks)
    rounds = pl.cdiv(tiling.tiles // tiling.samples, per_sample)
    if rounds == 1:
        totals = one(first, zeros)
    else:
        totals = jax.lax.fori_loop(0, rounds, lambda r, sums: one(first + r * per_sample, sums), zeros)
    for feature, accumulator in zip(tiling.chunks, totals, strict=True):
        mask = feature + jnp.arange(tiling.features) < tiling.shape[1]
        for name in wanted:
            window = ref[name].at[program, pl.ds(feature, tiling.features)]
            plt.store(window, jnp.sum(accumulator[name], axis=1 - tiling.axis), mask=mask)


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """As `reference.backward`."""
    (*tensors, shift, rstd), (scale, bias) = saved, parameters
    varied, whole = dict(zip(("x", "gate"), tensors, strict=False)), tensors[0]
    wanted = [n for n, p in (("dscale", scale), ("dbias", bias)) if p is not None]
    # Three tensors and the sums of a row of 8192 would not fit the registers.
    tiles = _tiling(settings, whole, _gpu_tiling.TILE * max(1, len(wanted)), split=2 if settings.gate else 1)
    per_sample = tiles.tiles // tiles.samples
    # Without sums to keep there is no reason to stay.
    if wanted:
        per_sample = min(per_sample, pl.cdiv(PROGRAMS // len(wanted), tiles.samples))
    programs = per_sample * tiles.samples
    operands = {n: tiles.tensor(t) for n, t in varied.items()}
    results = {f"d{n}": jax.ShapeDtypeStruct(t.shape, t.dtype) for n, t in operands.items()}
    operands |= {"dy": tiles.tensor(cotangents[-1]), "rstd": tiles.statistic(rstd)}
    operands |= {} if shift is None else {"shift": tiles.statistic(shift)}
    operands |= {} if scale is None else {"scale": _parameter(settings, scale)}
    operands |= {"dsum": tiles.tensor(cotangents[0])} if settings.residual else {}
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct((programs, tiles.shape[1]), F32))
    kernel = functools.partial(_backward_kernel, per_sample=per_sample)
    found = _call(kernel, "bwd", settings, tiles, programs, operands, results)
    dx, *dgate = (found[f"d{n}"].reshape(whole.shape) for n in varied)
    sums = [
        None if p is None else found[n].reshape(tiles.samples, per_sample, -1).sum(1).reshape(p.shape)
        for n, p in zip(("dscale", "dbias"), parameters, strict=True)
    ]
    return (dx.astype(cotangents[-1].dtype), dx, *sums) if settings.residual else (dx, *dgate, *sums)
