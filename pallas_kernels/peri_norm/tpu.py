"""Norm and addition on TPU: one read of x and the stream forward, one of x, h and both cotangents backward.

The gradient of one norm and addition is a row norm's, and the stream's cotangent passes it as it is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import _tpu_blocks, _tpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._strips import LANES
from pallas_kernels._tpu_tiling import F32, Tiling
from pallas_kernels.peri_norm.formula import NormAdd
from pallas_kernels.row_norm import formula
from pallas_kernels.row_norm import tpu as row_norm

STATISTICS = ("shift", "rstd", "shift_in", "rstd_in")
SCALES = ("scale_out", "scale_in")


def _weight(ref: dict[str, Any], name: str, features, settings: NormAdd, tile: Tiling) -> jax.Array | None:
    return formula.weight(_tpu_tiling.parameter(ref.get(name), features, tile.strips), settings.scale_offset)


def _forward_kernel(*refs, names: tuple[str, ...], settings: NormAdd, tile: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind = tile.strips, settings.kind

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))

        def statistics(source):
            sums = lambda terms: strips.sums(lambda features: terms(_tpu_tiling.wide(source, at(features))))  # noqa: E731
            return formula.statistics(kind, tile.features, settings.epsilon, sums)

        def normalized(source, scale, features, shift, rstd):
            u = formula.centred(kind, _tpu_tiling.wide(source, at(features)), shift)
            return formula.output(u, rstd, _weight(ref, scale, features, settings, tile), None)

        def add(features):
            total = normalized(ref["x"], "scale_out", features, *found[:2])
            ref["h"][at(features)] = (total + _tpu_tiling.wide(ref["residual"], at(features))).astype(ref["h"].dtype)

        def write(features):
            ref["y"][at(features)] = normalized(ref["h"], "scale_in", features, *found[2:]).astype(ref["y"].dtype)

        found = statistics(ref["x"])
        strips.for_each_strip(add)
        if settings.twice:
            found += statistics(ref["h"])
            strips.for_each_strip(write)
        for name, value in zip(STATISTICS, found, strict=False):
            if name in ref:
                _tpu_tiling.write_statistic(ref[name], value, index, tile)

    strips.for_each_group(group)


def _backward_kernel(*refs, names: tuple[str, ...], settings: NormAdd, tile: Tiling) -> None:
    *refs, stream_ref = refs
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind, n = tile.strips, settings.kind, tile.features
    accumulators = [ref[n] for n in ("dscale_out", "dscale_in") if n in ref]
    # Asked for here, because the interpreter does not know them inside of a loop.
    steps = [pl.program_id(d) for d in range(len(tile.grid))]

    @pl.when(functools.reduce(jnp.logical_and, [step == 0 for step in steps]))
    def _():
        for accumulator in accumulators:
            accumulator[...] = jnp.zeros_like(accumulator)

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))
        load = lambda name, features: _tpu_tiling.wide(ref[name], at(features))  # noqa: E731
        shift, rstd, shift_in, rstd_in = (
            _tpu_tiling.read_statistic(ref[name], index, tile) if name in ref else None for name in STATISTICS
        )
        assert rstd is not None
        assert rstd_in is not None
        valid = tile.valid(steps[-1], index) if tile.masked and accumulators else None

        def weighted(scale, features, cotangent):
            weight = _weight(ref, scale, features, settings, tile)
            return cotangent if weight is None else cotangent * weight

        def inner(features):
            return load("h", features), weighted("scale_in", features, load("dy", features))

        def stream(features):
            dh = formula.input_gradient(kind, *inner(features), shift_in, rstd_in, *projections)
            return dh + load("dh", features)

        def accumulate(name, features, term):
            term = term if valid is None else jnp.where(valid, term, 0.0)
            if name in ref and tile.lanes:
                ref[name][:, features] += jnp.sum(term.reshape(-1, 8, term.shape[1]), axis=0)
            elif name in ref:
                ref[name][features, : term.shape[1]] += term

        def outer(features):
            # Kept in float32: computed again in the last sweep it would be a sixth more cycles on a tpu7x.
            dh = stream(features)
            stream_ref[strips.at(slice(None), features)] = dh
            return load("x", features), weighted("scale_out", features, dh)

        def write(features):
            x, dh = load("x", features), stream_ref[strips.at(slice(None), features)]
            ref["dresidual"][at(features)] = dh.astype(ref["dresidual"].dtype)
            g = weighted("scale_out", features, dh)
            dx = formula.input_gradient(kind, x, g, shift, rstd, *slopes)
            ref["dx"][at(features)] = dx.astype(ref["dx"].dtype)
            accumulate("dscale_out", features, dh * (formula.centred(kind, x, shift) * rstd))
            h, dy = load("h", features), load("dy", features)
            accumulate("dscale_in", features, dy * (formula.centred(kind, h, shift_in) * rstd_in))

        sums = lambda of: lambda terms: strips.sums(lambda features: terms(*of(features)))  # noqa: E731
        projections = formula.projections(kind, n, shift_in, rstd_in, sums(inner))
        slopes = formula.projections(kind, n, shift, rstd, sums(outer))
        strips.for_each_strip(write)

    strips.for_each_group(group)


def _call(
    kernel, name: str, settings: NormAdd, tile: Tiling, semantics, inputs: dict, outputs: dict, scratch=()
) -> dict:
    special = dict.fromkeys(SCALES, tile.parameter_spec) | dict.fromkeys(STATISTICS, tile.statistic_spec)
    special |= dict.fromkeys(["d" + name for name in SCALES], _tpu_tiling.whole(tile.sums_shape, tile.grid))
    spec = lambda name: special.get(name, tile.tensor_spec)  # noqa: E731
    results = pl.pallas_call(
        functools.partial(kernel, names=(*inputs, *outputs), settings=settings, tile=tile),
        out_shape=tuple(outputs.values()),
        grid=tile.grid,
        in_specs=list(map(spec, inputs)),
        out_specs=tuple(map(spec, outputs)),
        compiler_params=tile.blocks.params(semantics),
        scratch_shapes=scratch,
        interpret=settings.interpret,
        name=f"{settings.kind}_norm_add{'_norm' if settings.twice else ''}_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _tile(settings: NormAdd, x: jax.Array, h: jax.Array, block: int | None, *, backward: bool) -> Tiling:
    shape = before_axis_after(x.shape, settings.axes)
    group = _tpu_blocks.group_of_rows(shape[1], (x.dtype, h.dtype))
    # Scales; backward their sums, and half of the float32 group that is kept, since all of this is taken twice.
    lanes, sublanes = (80 + 2 * group, 18 * LANES) if backward else (16, 8 * LANES)
    dtypes = (x.dtype, h.dtype) * (3 if backward else 2)
    return _tpu_tiling.tiling(shape, group, dtypes, lanes if shape[2] == 1 else sublanes, block)


def forward(settings: NormAdd, inputs: tuple, save: bool, block: int | None = None) -> tuple[tuple, tuple]:
    """As `reference.forward`; statistics are laid out as `Tiling.statistic_shape`."""
    x, residual, *scales = inputs
    tile = _tile(settings, x, residual, block, backward=False)
    operands = {"x": tile.tensor(x), "residual": tile.tensor(residual)}
    operands |= {n: tile.parameter(p) for n, p in zip(SCALES, scales, strict=False) if p is not None}
    like = lambda name: jax.ShapeDtypeStruct(operands[name].shape, operands[name].dtype)  # noqa: E731
    results = {"h": like("residual")} | ({"y": like("x")} if settings.twice else {})
    kept = [n for n in STATISTICS[: 4 if settings.twice else 2] if not (settings.kind == "rms" and "shift" in n)]
    results |= dict.fromkeys(kept if save else (), jax.ShapeDtypeStruct(tile.statistic_shape, F32))
    semantics = ("parallel",) * len(tile.grid)
    found = _call(_forward_kernel, "fwd", settings, tile, semantics, operands, results)
    outputs = tuple(found[n].reshape(x.shape) for n in ("h", "y") if n in found)
    statistics = tuple(map(found.get, STATISTICS))
    if not save:
        return outputs, ()
    return outputs, (x, outputs[0], *statistics) if settings.twice else (x, *statistics[:2])


def backward(settings: NormAdd, parameters: tuple, saved: tuple, cotangents: tuple, block: int | None = None) -> tuple:
    """As `reference.backward`."""
    if not settings.twice:
        dx, dscale, _ = row_norm.backward(settings.row, (*parameters, None), saved, cotangents, block)
        return dx, cotangents[0], dscale
    (x, h, *statistics), (dh, dy) = saved, cotangents
    tile = _tile(settings, x, h, block, backward=True)
    operands = {n: tile.tensor(t) for n, t in (("x", x), ("h", h), ("dh", dh), ("dy", dy))}
    operands |= {n: s for n, s in zip(STATISTICS, statistics, strict=True) if s is not None}
    operands |= {n: tile.parameter(p) for n, p in zip(SCALES, parameters, strict=True) if p is not None}
    like = lambda name: jax.ShapeDtypeStruct(operands[name].shape, operands[name].dtype)  # noqa: E731
    results = {"dx": like("x"), "dresidual": like("h")}
    wanted = ["d" + n for n in SCALES if n in operands]
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct(tile.sums_shape, F32))
    # Every step adds to the same accumulators: the grid must run in order where there are any.
    semantics = ("arbitrary" if wanted else "parallel",) * len(tile.grid)
    shape = (tile.blocks.group, tile.features) if tile.lanes else (tile.features, tile.blocks.group)
    found = _call(_backward_kernel, "bwd", settings, tile, semantics, operands, results, (pltpu.VMEM(shape, F32),))
    sums = [
        None if p is None else found["d" + n].sum(0 if tile.lanes else 1).reshape(p.shape)
        for n, p in zip(SCALES, parameters, strict=True)
    ]
    return found["dx"].reshape(x.shape), found["dresidual"].reshape(x.shape), *sums
