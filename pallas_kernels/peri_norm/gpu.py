"""Norm and addition on GPU by Triton: tiles in registers, a fixed number of programs for the scales' gradients.

The gradient of one norm and addition is a row norm's, and the stream's cotangent passes it as it is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels import _gpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._gpu_tiling import F32, Tile, Tiling
from pallas_kernels.peri_norm.formula import NormAdd
from pallas_kernels.row_norm import formula
from pallas_kernels.row_norm import gpu as row_norm

STATISTICS = ("shift", "rstd", "shift_in", "rstd_in")
SCALES = ("scale_out", "scale_in")
# Six tensors of a row meet in registers: a wider row is swept in tiles.
FEATURES = 4096


def _weight(ref: dict[str, Any], name: str, feature: int, settings: NormAdd, tiling: Tiling) -> jax.Array | None:
    return formula.weight(_gpu_tiling.parameter(ref.get(name), feature, tiling), settings.scale_offset)


def _forward_kernel(*refs, names: tuple[str, ...], settings: NormAdd, tiling: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    tile, kind = Tile(tiling, pl.program_id(0)), settings.kind

    def statistics(load):
        sums = lambda terms: tile.sums(lambda feature: terms(load(feature)))  # noqa: E731
        return formula.statistics(kind, tiling.shape[1], settings.epsilon, sums)

    def normalized(load, scale, feature, shift, rstd):
        u = formula.centred(kind, load(feature), shift)
        return formula.output(u, rstd, _weight(ref, scale, feature, settings, tiling), None)

    x = _gpu_tiling.once(lambda feature: tile.load(ref["x"], feature).astype(F32), tiling)
    found = statistics(x)

    def stream(feature):
        total = normalized(x, "scale_out", feature, *found[:2]) + tile.load(ref["residual"], feature).astype(F32)
        # As it is stored: what is normalized is what is returned.
        return total.astype(ref["h"].dtype).astype(F32)

    h = _gpu_tiling.once(stream, tiling)
    if settings.twice:
        found += statistics(h)
    for feature in tiling.chunks:
        tile.store(ref["h"], feature, h(feature))
        if settings.twice:
            tile.store(ref["y"], feature, normalized(h, "scale_in", feature, *found[2:]))
    for name, value in zip(STATISTICS, found, strict=False):
        if name in ref:
            tile.store_statistic(ref[name], value)


def _backward_kernel(*refs, names: tuple[str, ...], settings: NormAdd, tiling: Tiling, programs: int) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    program, kind, n = pl.program_id(0), settings.kind, tiling.shape[1]
    wanted = [name for name in ("dscale_out", "dscale_in") if name in ref]
    # Columns are many and rows of a tile are few: only the former are summed at once.
    over_rows = lambda term: term if tiling.axis == 1 else jnp.sum(term, axis=1, keepdims=True)  # noqa: E731

    def one(index, accumulators):
        tile = Tile(tiling, index)
        shift, rstd, shift_in, rstd_in = (tile.load_statistic(ref[s]) if s in ref else None for s in STATISTICS)
        assert rstd is not None
        assert rstd_in is not None
        once: Callable[[Callable[[int], Any]], Callable[[int], Any]] = lambda f: _gpu_tiling.once(f, tiling)  # noqa: E731
        load = lambda name: once(lambda feature: tile.load(ref[name], feature).astype(F32))  # noqa: E731
        x, h, dh, dy = map(load, ("x", "h", "dh", "dy"))

        def weighted(scale, feature, cotangent):
            weight = _weight(ref, scale, feature, settings, tiling)
            return cotangent if weight is None else cotangent * weight

        inner = once(lambda feature: (h(feature), weighted("scale_in", feature, dy(feature))))
        sums = lambda of: lambda terms: tile.sums(lambda feature: terms(*of(feature)))  # noqa: E731
        projections = formula.projections(kind, n, shift_in, rstd_in, sums(inner))

        def gradient(feature):
            value, g = inner(feature)
            return dh(feature) + formula.input_gradient(kind, value, g, shift_in, rstd_in, *projections)

        stream = once(gradient)
        outer = once(lambda feature: (x(feature), weighted("scale_out", feature, stream(feature))))
        slopes = formula.projections(kind, n, shift, rstd, sums(outer))
        grown = []
        for feature, accumulator in zip(tiling.chunks, accumulators, strict=True):
            tile.store(ref["dresidual"], feature, stream(feature))
            value, g = outer(feature)
            tile.store(ref["dx"], feature, formula.input_gradient(kind, value, g, shift, rstd, *slopes))
            # A feature that does not exist has a cotangent of zero, but the stream's gradient there is minus the mean.
            dstream = jnp.where(tile.mask(feature), stream(feature), 0.0)
            terms = {
                "dscale_out": lambda f=feature, d=dstream: d * (formula.centred(kind, x(f), shift) * rstd),
                "dscale_in": lambda f=feature: dy(f) * (formula.centred(kind, h(f), shift_in) * rstd_in),
            }
            grown.append({name: accumulator[name] + over_rows(terms[name]()) for name in wanted})
        return tuple(grown)

    shape = (tiling.rows, tiling.features) if tiling.axis == 1 else (tiling.features, 1)
    zeros = tuple({name: jnp.zeros(shape, F32) for name in wanted} for _ in tiling.chunks)
    rounds = pl.cdiv(tiling.tiles, programs)
    if rounds == 1:
        totals = one(program, zeros)
    else:
        totals = jax.lax.fori_loop(0, rounds, lambda r, sums: one(program + r * programs, sums), zeros)
    for feature, accumulator in zip(tiling.chunks, totals, strict=True):
        mask = feature + jnp.arange(tiling.features) < n
        for name in wanted:
            window = ref[name].at[program, pl.ds(feature, tiling.features)]
            plt.store(window, jnp.sum(accumulator[name], axis=1 - tiling.axis), mask=mask)


def _call(kernel, name: str, settings: NormAdd, tiling: Tiling, programs: int, inputs: dict, outputs: dict) -> dict:
    def specs(arrays):
        return tuple(pl.no_block_spec if n in STATISTICS else tiling.spec(a) for n, a in arrays.items())

    results = pl.pallas_call(
        functools.partial(kernel, names=(*inputs, *outputs), settings=settings, tiling=tiling),
        out_shape=tuple(outputs.values()),
        grid=(programs,),
        in_specs=specs(inputs),
        out_specs=specs(outputs),
        compiler_params=plt.CompilerParams(num_warps=tiling.warps, num_stages=1),
        interpret=bool(settings.interpret),
        name=f"{settings.kind}_norm_add{'_norm' if settings.twice else ''}_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def forward(settings: NormAdd, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """As `reference.forward`."""
    x, residual, *scales = inputs
    tiles = _gpu_tiling.tiling(before_axis_after(x.shape, settings.axes))
    operands = {"x": tiles.tensor(x), "residual": tiles.tensor(residual)}
    operands |= {n: p.reshape(-1) for n, p in zip(SCALES, scales, strict=False) if p is not None}
    like = lambda name: jax.ShapeDtypeStruct(operands[name].shape, operands[name].dtype)  # noqa: E731
    results = {"h": like("residual")} | ({"y": like("x")} if settings.twice else {})
    kept = [n for n in STATISTICS[: 4 if settings.twice else 2] if not (settings.kind == "rms" and "shift" in n)]
    results |= dict.fromkeys(kept if save else (), jax.ShapeDtypeStruct(tiles.statistic_shape, F32))
    found = _call(_forward_kernel, "fwd", settings, tiles, tiles.tiles, operands, results)
    outputs = tuple(found[n].reshape(x.shape) for n in ("h", "y") if n in found)
    if not save:
        return outputs, ()
    before, _, after = tiles.shape
    statistics = tuple(found[n].reshape(before, 1, after) if n in found else None for n in STATISTICS)
    return outputs, (x, outputs[0], *statistics) if settings.twice else (x, *statistics[:2])


def backward(settings: NormAdd, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """As `reference.backward`."""
    if not settings.twice:
        dx, dscale, _ = row_norm.backward(settings.row, (*parameters, None), saved, cotangents)
        return dx, cotangents[0], dscale
    (x, h, *statistics), (dh, dy) = saved, cotangents
    tiles = _gpu_tiling.tiling(before_axis_after(x.shape, settings.axes))
    if tiles.axis == 1:
        tiles = dataclasses.replace(tiles, features=min(tiles.features, FEATURES))
    operands = {n: tiles.tensor(t) for n, t in (("x", x), ("h", h), ("dh", dh), ("dy", dy))}
    operands |= {n: tiles.statistic(s) for n, s in zip(STATISTICS, statistics, strict=True) if s is not None}
    operands |= {n: p.reshape(-1) for n, p in zip(SCALES, parameters, strict=True) if p is not None}
    like = lambda name: jax.ShapeDtypeStruct(operands[name].shape, operands[name].dtype)  # noqa: E731
    results = {"dx": like("x"), "dresidual": like("h")}
    wanted = ["d" + n for n in SCALES if n in operands]
    # Without sums to keep there is no reason to stay.
    programs = min(tiles.tiles, row_norm.PROGRAMS // len(wanted)) if wanted else tiles.tiles
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct((programs, tiles.shape[1]), F32))
    kernel = functools.partial(_backward_kernel, programs=programs)
    found = _call(kernel, "bwd", settings, tiles, programs, operands, results)
    sums = [
        None if p is None else found["d" + n].sum(0).reshape(p.shape) for n, p in zip(SCALES, parameters, strict=True)
    ]
    return found["dx"].reshape(x.shape), found["dresidual"].reshape(x.shape), *sums
