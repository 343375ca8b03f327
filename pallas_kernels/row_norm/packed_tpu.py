"""Row norms on TPU of short rows that lie side by side, as the heads of attention do.

A matrix product leaves heads as (tokens, heads · features). Memory is tiled, so rows of one head each would be another
array, and rows of 64 features would fill half of every register and of every tile in memory. Here a block is whole
tokens, and a strip is one head, or the fewest that fill registers without rest.

Nothing is saved but x: its statistics cost a sweep over registers, while one number per head and token would have to be
written, turned to lanes and back, and read. It is saved as the kernel sees it: as (..., heads, 64) it would take twice
the memory wherever XLA does not choose its layout.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_blocks, _tpu_tiling
from pallas_kernels._strips import LANES, Strips
from pallas_kernels._tpu_tiling import F32, Tiling
from pallas_kernels.row_norm import formula, tpu
from pallas_kernels.row_norm.formula import RowNorm

# Heads of a strip: each takes a sum of its own over the registers that it touches. More features than that, side by
# side, are not heads.
HEADS, MOST = 8, 2**15


def fits(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Whether rows lie beside others, and few of them fill registers without rest."""
    if len(shape) < 2 or axes != (len(shape) - 1,):
        return False
    return math.lcm(shape[-1], LANES) // shape[-1] <= HEADS and shape[-1] * shape[-2] <= MOST


def _tiling(shape: tuple[int, ...], dtypes: tuple, fixed: int, block: int | None) -> Tiling:
    tokens, width = math.prod(shape[:-2]), shape[-2] * shape[-1]
    group = _tpu_blocks.group_of_rows(width, dtypes)
    blocks = _tpu_blocks.row_blocks(tokens, width, group, dtypes, fixed, block)
    strips = Strips(1, width, group, pl.cdiv(blocks.block, group), math.lcm(shape[-1], LANES))
    return Tiling(tokens, width, 1, strips, blocks)


def _head_sums(terms: tuple[jax.Array, ...], features: int) -> tuple[jax.Array, ...]:
    """Sums over each head of a strip, at all of its lanes where there are several."""
    return tuple(_head_sum(term, features) for term in terms)


def _head_sum(term: jax.Array, features: int) -> jax.Array:
    rows, width = term.shape
    if width == features:
        return jnp.sum(term, axis=1, keepdims=True)

    def lanes(first: int, last: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (rows, last - first), 1) + first

    def own(head: int) -> jax.Array:
        # Cut between registers, which costs nothing; masked within.
        start, stop = head * features, (head + 1) * features
        first, last = start // LANES * LANES, min(-(-stop // LANES) * LANES, width)
        lane, part = lanes(first, last), term[:, first:last]
        return jnp.sum(jnp.where((lane >= start) & (lane < stop), part, 0.0), axis=1, keepdims=True)

    sums = [own(head) for head in range(width // features)]
    registers = []
    for first in range(0, width, LANES):
        last = min(first + LANES, width)
        found = jnp.broadcast_to(sums[first // features], (rows, last - first))
        for head in range(first // features + 1, -(-last // features)):
            found = jnp.where(lanes(first, last) >= head * features, sums[head], found)
        registers.append(found)
    return jnp.concatenate(registers, axis=1)


def _forward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tile: Tiling, features: int) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind = tile.strips, settings.kind

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))

        def write(strip):
            x = _tpu_tiling.wide(ref["x"], at(strip))
            sums = lambda terms: _head_sums(terms(x), features)  # noqa: E731
            shift, rstd = formula.statistics(kind, features, settings.epsilon, sums)
            weight = formula.weight(_tpu_tiling.parameter(ref.get("scale"), strip, strips), settings.scale_offset)
            bias = _tpu_tiling.parameter(ref.get("bias"), strip, strips)
            y = formula.output(formula.centred(kind, x, shift), rstd, weight, bias)
            ref["y"][at(strip)] = y.astype(ref["y"].dtype)

        strips.for_each_strip(write)

    strips.for_each_group(group)


def _operands(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, tile: Tiling) -> dict[str, jax.Array]:
    heads = x.shape[-2]
    parameters = {n: tile.parameter(jnp.tile(p, heads)) for n, p in (("scale", scale), ("bias", bias)) if p is not None}
    return {"x": tile.tensor(x), **parameters}


def forward(settings: RowNorm, inputs: tuple, save: bool, block: int | None = None) -> tuple[tuple, tuple]:
    """As `reference.forward`, except that no statistics are saved."""
    x, scale, bias = inputs
    tile = _tiling(x.shape, (x.dtype, x.dtype), 16, block)
    operands = _operands(x, scale, bias, tile)
    results = {"y": jax.ShapeDtypeStruct(operands["x"].shape, x.dtype)}
    kernel = functools.partial(_forward_kernel, features=x.shape[-1])
    found = tpu.call(kernel, "heads_fwd", settings, tile, ("parallel",), operands, results, tpu.specs(tile))
    return (found["y"].reshape(x.shape),), (operands["x"], None, None) if save else ()


def _backward_kernel(*refs, names: tuple[str, ...], settings: RowNorm, tile: Tiling, features: int) -> None:
    ref: dict[str, Any] = dict(zip(names, refs, strict=True))
    strips, kind, step = tile.strips, settings.kind, pl.program_id(0)
    accumulators = [ref[n] for n in ("dscale", "dbias") if n in ref]

    @pl.when(step == 0)
    def _():
        for accumulator in accumulators:
            accumulator[...] = jnp.zeros_like(accumulator)

    def group(index):
        at = functools.partial(strips.at, strips.rows(index))
        valid = tile.valid(step, index) if tile.masked and accumulators else None

        def write(strip):
            x, dy = _tpu_tiling.wide(ref["x"], at(strip)), _tpu_tiling.wide(ref["dy"], at(strip))
            weight = formula.weight(_tpu_tiling.parameter(ref.get("scale"), strip, strips), settings.scale_offset)
            g = dy if weight is None else dy * weight
            sums = lambda terms: _head_sums(terms(x), features)  # noqa: E731
            shift, rstd = formula.statistics(kind, features, settings.epsilon, sums)
            sums = lambda terms: _head_sums(terms(x, g), features)  # noqa: E731
            mean, slope = formula.projections(kind, features, shift, rstd, sums)
            dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
            ref["dx"][at(strip)] = dx.astype(ref["dx"].dtype)
            terms = {"dscale": dy * (formula.centred(kind, x, shift) * rstd), "dbias": dy}
            for name, term in terms.items():
                if name in ref:
                    _tpu_tiling.accumulate(ref[name], strip, term, valid, tile)

        strips.for_each_strip(write)

    strips.for_each_group(group)


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple, block: int | None = None) -> tuple:
    """As `reference.backward`."""
    (x, *_), (scale, _), (dy,) = saved, parameters, cotangents
    tile = _tiling(dy.shape, (x.dtype,) * 3, 80, block)
    operands = _operands(x.reshape(dy.shape), scale, None, tile) | {"dy": tile.tensor(dy)}
    results = {"dx": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    wanted = [n for n, p in zip(("dscale", "dbias"), parameters, strict=True) if p is not None]
    results |= dict.fromkeys(wanted, jax.ShapeDtypeStruct(tile.sums_shape, F32))
    kernel = functools.partial(_backward_kernel, features=dy.shape[-1])
    semantics = ("arbitrary" if wanted else "parallel",)
    found = tpu.call(kernel, "heads_bwd", settings, tile, semantics, operands, results, tpu.specs(tile))
    sums = [found[n].reshape(-1, dy.shape[-1]).sum(0) if n in found else None for n in ("dscale", "dbias")]
    return (found["dx"].reshape(dy.shape), *sums)
