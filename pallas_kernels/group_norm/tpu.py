"""Group norm on TPU: one read of x forward, one of x and dy backward, where a sample's map fits into VMEM."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.group_norm import formula, tpu_sweeps
from pallas_kernels.group_norm.formula import GroupNorm
from pallas_kernels.group_norm.tpu_step import Step
from pallas_kernels.group_norm.tpu_sweeps import wide
from pallas_kernels.group_norm.tpu_tiling import F32, Maps, maps


def _forward_kernel(*refs, names: tuple[str, ...], settings: GroupNorm, tile: Maps) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    step = Step(ref, tile)

    def measure():
        planes = step.planes(step.index)
        count = float(planes * tile.per_plane) if isinstance(planes, int) else planes.astype(F32) * tile.per_plane
        (total,) = step.sums(1, lambda at: (wide(ref["x"], at),))
        mean = step.group_sums(total) / count
        (square,) = step.sums(1, lambda at: ((wide(ref["x"], at) - step.part(mean, at)) ** 2,))
        square = step.group_sums(square)
        if tile.mode != "whole":
            step.keep("x")
            mean, square = _merged(step, count, mean, square)
        ref["mean_row"][...], ref["square_row"][...] = mean, square

    def normalize():
        mean = ref["mean_row"][...]
        rstd = jax.lax.rsqrt(ref["square_row"][...] / tile.elements + settings.epsilon)
        weight, bias = formula.weight(rstd, step.parameter("scale")), step.parameter("bias")

        def y(at):
            value = (step.again("x", at) - step.part(mean, at)) * step.part(weight, at)
            return value if bias is None else value + step.part(bias, at)

        step.write("y", y)
        for name, vector in (("mean", mean), ("rstd", rstd)):
            if name in ref:
                ref[name][...] = tpu_sweeps.to_groups(vector, step.groups, tile.axis)

    step.in_phase(0, measure)
    step.in_phase(1, normalize)


def _merged(step: Step, count, mean: jax.Array, square: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and centred squares of all blocks up to this one."""
    tile = step.tile
    before = (step.index * (tile.block * tile.per_plane)).astype(F32)
    share = count / (before + count)
    # What the scratch holds at the first block is another sample's, or nothing yet.
    first = step.index == 0
    earlier_mean, earlier_square = (jnp.where(first, 0.0, step.ref[n][...]) for n in ("mean_row", "square_row"))
    change = mean - earlier_mean
    return earlier_mean + change * share, earlier_square + square + change * change * (before * share)


def _backward_kernel(*refs, names: tuple[str, ...], settings: GroupNorm, tile: Maps) -> None:
    del settings
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    step = Step(ref, tile)
    rows = ("product_row", "total_row")

    def measure():
        mean = step.statistic("mean")

        def terms(at):
            dy = wide(ref["dy"], at)
            return dy * (wide(ref["x"], at) - step.part(mean, at)), dy

        found = step.sums(2, terms)
        step.keep("x", "dy")
        for name, row in zip(rows, found, strict=True):
            ref[name][...] = row if tile.mode == "whole" else row + jnp.where(step.index == 0, 0.0, ref[name][...])

    def differentiate():
        mean, rstd = step.statistic("mean"), step.statistic("rstd")
        product, total = (ref[name][...] for name in rows)
        group_mean = lambda vector: step.group_sums(vector) / tile.elements  # noqa: E731
        by = formula.coefficients(product, total, rstd, step.parameter("scale"), group_mean)

        def dx(at):
            here = formula.Coefficients(*(step.part(vector, at) for vector in by))
            return formula.input_gradient(step.again("dy", at), step.again("x", at) - step.part(mean, at), here)

        step.write("dx", dx)
        for name, row in (("dscale", product * rstd), ("dbias", total)):
            if name in ref:
                step.add_to(ref[name], row)

    step.in_phase(0, measure)
    step.in_phase(1, differentiate)


def _call(
    kernel, name: str, settings: GroupNorm, tile: Maps, samples, inputs: dict, outputs: dict, rows: tuple
) -> dict:
    """`pallas_call` over named operands, with scratch for rows of channels and for what is kept of the tensors."""
    scratch = {n: pltpu.VMEM(tile.vector(tile.channels), F32) for n in rows}
    if tile.mode == "kept":
        scratch |= {f"kept_{n}": pltpu.VMEM(tile.kept_shape, inputs[n].dtype) for n in ("x", "dy") if n in inputs}
    read, written, parameter = tile.read_spec, tile.written_spec, tile.parameter_spec
    specs = {"x": read, "y": written, "dx": written, "mean": tile.statistic_spec, "rstd": tile.statistic_spec}
    specs |= {"dy": read} | dict.fromkeys(("scale", "bias", "dscale", "dbias"), parameter)
    results = pl.pallas_call(
        functools.partial(kernel, names=(*inputs, *outputs, *scratch), settings=settings, tile=tile),
        out_shape=tuple(outputs.values()),
        grid=tile.grid,
        in_specs=[specs[n] for n in inputs],
        out_specs=tuple(specs[n] for n in outputs),
        scratch_shapes=list(scratch.values()),
        compiler_params=tile.params(samples),
        interpret=settings.interpret,
        name=f"group_norm_{name}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def forward(settings: GroupNorm, inputs: tuple, save: bool, tile: Maps | None = None) -> tuple[tuple, tuple]:
    """As `reference.forward`."""
    x, scale, bias = inputs
    tile = tile or maps(x.shape, settings.groups, (x.dtype,), (x.dtype,))
    operands = {"x": tile.tensor(x)}
    operands |= {n: p.reshape(tile.vector(x.shape[-1])) for n, p in (("scale", scale), ("bias", bias)) if p is not None}
    results = {"y": jax.ShapeDtypeStruct(tile.shape, x.dtype)}
    if save:
        results |= dict.fromkeys(("mean", "rstd"), jax.ShapeDtypeStruct(tile.statistic_shape, F32))
    rows = ("mean_row", "square_row")
    found = _call(_forward_kernel, "fwd", settings, tile, "parallel", operands, results, rows)
    statistics = (found[n].reshape(x.shape[0], -1) for n in ("mean", "rstd") if n in found)
    return (tile.like(x, found["y"]),), (x, *statistics) if save else ()


def backward(
    settings: GroupNorm, parameters: tuple, saved: tuple, cotangents: tuple, tile: Maps | None = None
) -> tuple:
    """As `reference.backward`."""
    (x, mean, rstd), (scale, bias), (dy,) = saved, parameters, cotangents
    tile = tile or maps(x.shape, settings.groups, (x.dtype, dy.dtype), (x.dtype,))
    operands = {"x": tile.tensor(x), "dy": tile.tensor(dy)}
    operands |= {n: s.reshape(tile.statistic_shape) for n, s in (("mean", mean), ("rstd", rstd))}
    operands |= {} if scale is None else {"scale": scale.reshape(tile.vector(x.shape[-1]))}
    wanted = [n for n, p in (("dscale", scale), ("dbias", bias)) if p is not None]
    results = {"dx": jax.ShapeDtypeStruct(tile.shape, x.dtype)}
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct(tile.vector(x.shape[-1]), F32))
    # Every sample adds to the same accumulators: samples must run in order where there are any.
    samples = "arbitrary" if wanted else "parallel"
    found = _call(_backward_kernel, "bwd", settings, tile, samples, operands, results, ("product_row", "total_row"))
    sums = (found[n].reshape(-1) if n in found else None for n in ("dscale", "dbias"))
    return tile.like(x, found["dx"]), *sums
