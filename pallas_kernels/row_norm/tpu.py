"""Row norms on TPU: one read of x forward, one of x and dy backward, whatever the accuracy asks of the statistics.

Rows lie along the lanes where the normalized axis is the last, along the sublanes elsewhere: no transpose either way.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_blocks, _tpu_samples, _tpu_tiling
from pallas_kernels._axes import before_axis_after
from pallas_kernels._strips import LANES
from pallas_kernels._tpu_tiling import F32, Tiling
from pallas_kernels.row_norm import formula, gate
from pallas_kernels.row_norm.formula import RowNorm


def _forward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tile: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind = tile.strips, settings.kind
    source = ref.get("sum", ref["x"])

    def group(index):
        rows = strips.rows(index)
        at = functools.partial(strips.at, rows)

        def add(features):
            narrow = ref["sum"].dtype
            ref["sum"][at(features)] = ref["x"][at(features)].astype(narrow) + ref["residual"][at(features)]

        def normalized(features):
            x = _tpu_tiling.wide(source, at(features))
            return gate.before(settings.gate, x, _gate(ref, at(features)))

        def write(features):
            u = formula.centred(kind, normalized(features), shift)
            weight = formula.weight(_tpu_tiling.parameter(ref.get("scale"), features, strips), settings.scale_offset)
            y = formula.output(u, rstd, weight, _tpu_tiling.parameter(ref.get("bias"), features, strips))
            y = gate.after(settings.gate, y, _gate(ref, at(features)))
            ref["y"][at(features)] = y.astype(ref["y"].dtype)

        if "sum" in ref:
            strips.for_each_strip(add)
        sums = lambda terms: strips.sums(lambda features: terms(normalized(features)))  # noqa: E731
        shift, rstd = formula.statistics(kind, tile.features, settings.epsilon, sums)
        strips.for_each_strip(write)
        for name, value in (("shift", shift), ("rstd", rstd)):
            if name in ref:
                _tpu_tiling.write_statistic(ref[name], value, index, tile)

    strips.for_each_group(group)


def _gate(ref: dict[str, Any], index) -> jax.Array | None:
    return _tpu_tiling.wide(ref["gate"], index) if "gate" in ref else None


def call(kernel, name, settings, tile: Tiling, semantics, inputs: dict, outputs: dict, block_specs: dict):
    """`pallas_call` over named operands, with a whole-array or blocked spec for each."""
    body = functools.partial(kernel, names=(*inputs, *outputs), settings=settings, tile=tile)
    results = pl.pallas_call(
        body,
        out_shape=tuple(outputs.values()),
        grid=tile.grid,
        in_specs=[block_specs[n] for n in inputs],
        out_specs=tuple(block_specs[n] for n in outputs),
        compiler_params=tile.blocks.params(semantics),
        interpret=settings.interpret,
        name=f"{settings.name}_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def specs(tile: Tiling) -> dict[str, pl.BlockSpec]:
    """How each array of a row norm is cut."""
    found: dict[str, pl.BlockSpec] = {}
    for names, spec in (
        (("x", "residual", "gate", "dy", "dsum", "sum", "y", "dx", "dgate"), tile.tensor_spec),
        (("scale", "bias"), tile.parameter_spec),
        (("shift", "rstd"), tile.statistic_spec),
        (("dscale", "dbias"), tile.sums_spec),
    ):
        found |= dict.fromkeys(names, spec)
    return found


def _tiling(settings: RowNorm, x: jax.Array) -> Callable[..., Tiling]:
    return functools.partial(_tpu_samples.tiling, x.shape[0]) if settings.samples else _tpu_tiling.tiling


def forward(settings: RowNorm, inputs: tuple, save: bool, block: int | None = None) -> tuple[tuple, tuple]:
    """As `reference.forward`; statistics are laid out as `Tiling.statistic_shape`."""
    *tensors, scale, bias = inputs
    shape = before_axis_after(tensors[0].shape, settings.axes)
    whole = tensors[-1] if settings.residual else tensors[0]
    dtypes = tuple(t.dtype for t in tensors)
    outputs = dtypes if settings.residual else dtypes[:1]
    group = _tpu_blocks.group_of_rows(shape[1] * settings.held, dtypes)
    tile = _tiling(settings, whole)(shape, group, (*dtypes, *outputs), 16 if shape[2] == 1 else 4 * LANES, block)
    operands = dict(zip(settings.tensors, map(tile.tensor, tensors), strict=True))
    operands |= {n: tile.parameter(p) for n, p in (("scale", scale), ("bias", bias)) if p is not None}
    like = lambda array: jax.ShapeDtypeStruct(tile.tensor(array).shape, array.dtype)  # noqa: E731
    results = {"sum": like(whole)} if settings.residual else {}
    results["y"] = like(tensors[0])
    if save:
        statistics = ("rstd",) if settings.kind == "rms" else ("shift", "rstd")
        results |= dict.fromkeys(statistics, jax.ShapeDtypeStruct(tile.statistic_shape, F32))
    semantics = ("parallel",) * len(tile.grid)
    found = call(_forward_kernel, "fwd", settings, tile, semantics, operands, results, specs(tile))
    outputs = tuple(found[n].reshape(whole.shape) for n in ("sum", "y") if n in found)
    kept = tensors if settings.gate else outputs[:1] if settings.residual else (whole,)
    return outputs, (*kept, found.get("shift"), found["rstd"]) if save else ()


def _backward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tile: Tiling) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind = tile.strips, settings.kind
    accumulators = [ref[n] for n in ("dscale", "dbias") if n in ref]
    # Asked for here, because the interpreter does not know them inside of a loop.
    steps = [pl.program_id(d) for d in range(len(tile.grid))]
    first = functools.reduce(jnp.logical_and, [step == 0 for step in (steps[1:] if settings.samples else steps)])

    @pl.when(first)
    def _():
        for accumulator in accumulators:
            accumulator[...] = jnp.zeros_like(accumulator)

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))
        rstd = _tpu_tiling.read_statistic(ref["rstd"], index, tile)
        shift = _tpu_tiling.read_statistic(ref["shift"], index, tile) if "shift" in ref else None
        valid = tile.valid(steps[-1], index) if tile.masked and accumulators else None

        def weight_of(features):
            return formula.weight(_tpu_tiling.parameter(ref.get("scale"), features, strips), settings.scale_offset)

        def x_g_dy(features):
            x, dy = _tpu_tiling.wide(ref["x"], at(features)), _tpu_tiling.wide(ref["dy"], at(features))
            z, weight = _gate(ref, at(features)), weight_of(features)
            x, dy = gate.before(settings.gate, x, z), gate.after(settings.gate, dy, z)
            return x, dy if weight is None else dy * weight, dy

        sums = lambda terms: strips.sums(lambda features: terms(*x_g_dy(features)[:2]))  # noqa: E731
        mean, slope = formula.projections(kind, tile.features, shift, rstd, sums)

        def write(features):
            x, g, dy = x_g_dy(features)
            dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
            if "dsum" in ref:
                dx = dx + _tpu_tiling.wide(ref["dsum"], at(features))
            u = formula.centred(kind, x, shift)
            if settings.gate is not None:
                raw, z, cotangent = (_tpu_tiling.wide(ref[n], at(features)) for n in ("x", "gate", "dy"))
                y = formula.output(u, rstd, weight_of(features), None)
                dx, dgate = gate.gradients(settings.gate, raw, z, y, cotangent, dx)
                ref["dgate"][at(features)] = dgate.astype(ref["dgate"].dtype)
            ref["dx"][at(features)] = dx.astype(ref["dx"].dtype)
            if "dscale" in ref:
                _tpu_tiling.accumulate(ref["dscale"], features, dy * (u * rstd), valid, tile)
            if "dbias" in ref:
                _tpu_tiling.accumulate(ref["dbias"], features, dy, valid, tile)

        strips.for_each_strip(write)

    strips.for_each_group(group)


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple, block: int | None = None) -> tuple:
    """As `reference.backward`."""
    (*tensors, shift, rstd), (scale, bias) = saved, parameters
    varied, whole = dict(zip(("x", "gate"), tensors, strict=False)), tensors[0]
    shape = before_axis_after(whole.shape, settings.axes)
    dtypes = tuple(t.dtype for t in tensors)
    group = _tpu_blocks.group_of_rows(shape[1] * settings.held, (cotangents[-1].dtype, *dtypes))
    fixed = 80 if shape[2] == 1 else 3 * 4 * LANES
    blocked = (*dtypes, *(c.dtype for c in cotangents), *dtypes)
    tile = _tiling(settings, whole)(shape, group, blocked, fixed, block)
    operands = {n: tile.tensor(t) for n, t in varied.items()}
    results = {f"d{n}": jax.ShapeDtypeStruct(t.shape, t.dtype) for n, t in operands.items()}
    operands |= {"dy": tile.tensor(cotangents[-1]), "rstd": rstd}
    operands |= {} if shift is None else {"shift": shift}
    operands |= {} if scale is None else {"scale": tile.parameter(scale)}
    operands |= {"dsum": tile.tensor(cotangents[0])} if settings.residual else {}
    wanted = [n for n, p in (("dscale", scale), ("dbias", bias)) if p is not None]
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct(tile.sums_shape, F32))
    # Every step adds to the same accumulators: the grid must run in order where there are any.
    semantics = ("arbitrary" if wanted else "parallel",) * len(tile.grid)
    semantics = ("parallel", *semantics[1:]) if settings.samples else semantics
    found = call(_backward_kernel, "bwd", settings, tile, semantics, operands, results, specs(tile))
    dx, *dgate = (found[f"d{n}"].reshape(whole.shape) for n in varied)
    sums = [
        None if p is None else found[n].sum(-2 if tile.lanes else -1).reshape(p.shape)
        for n, p in zip(("dscale", "dbias"), parameters, strict=True)
    ]
    return (dx.astype(cotangents[-1].dtype), dx, *sums) if settings.residual else (dx, *dgate, *sums)
