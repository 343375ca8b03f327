"""Row norms in XLA: the definition, and a form for features that are split over devices."""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels._axes import before_axis_after
from pallas_kernels.row_norm import formula
from pallas_kernels.row_norm.formula import RowNorm


def _row_statistics(settings: RowNorm, x: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    names = settings.feature_names
    n = x.shape[1] * math.prod(map(jax.lax.axis_size, names))
    if names and settings.kind == "layer":
        return _merged_statistics(x, names, settings.epsilon)

    def sums(terms):
        return _over_shards([jnp.sum(term, axis=1, keepdims=True) for term in terms(x)], names)

    return formula.statistics(settings.kind, n, settings.epsilon, sums)


def _over_shards(sums: list[jax.Array], names: tuple[str, ...]) -> tuple[jax.Array, ...]:
    """Sums over the shards too, all in one all-reduce."""
    return tuple(jax.lax.psum(jnp.stack(sums), names)) if names else tuple(sums)


def _merged_statistics(x: jax.Array, names: tuple[str, ...], epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Mean and rstd from the shards' own means and squares, which meet in one all-reduce and cancel nothing."""
    mean = jnp.mean(x, axis=1, keepdims=True)
    square = jnp.mean((x - mean) ** 2, axis=1, keepdims=True)
    slots = jnp.zeros((math.prod(map(jax.lax.axis_size, names)), 2, *mean.shape), x.dtype)
    slots = jax.lax.psum(slots.at[jax.lax.axis_index(names)].set(jnp.stack([mean, square])), names)
    merged = jnp.mean(slots[:, 0], axis=0)
    return merged, jax.lax.rsqrt(jnp.mean(slots[:, 1] + (slots[:, 0] - merged) ** 2, axis=0) + epsilon)


def _wide(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return array.reshape(shape).astype(jnp.promote_types(array.dtype, jnp.float32))


def forward(settings: RowNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """Outputs, and what the backward pass needs; statistics are `(before, 1, after)`."""
    *tensors, scale, bias = inputs
    whole = sum_of(*tensors) if settings.residual else tensors[0]
    shape = before_axis_after(whole.shape, settings.axes)
    x = _wide(whole, shape)
    shift, rstd = _row_statistics(settings, x)
    weight = formula.weight(scale, settings.scale_offset)
    parameters = [None if p is None else _wide(p, (1, -1, 1)).astype(x.dtype) for p in (weight, bias)]
    y = formula.output(formula.centred(settings.kind, x, shift), rstd, *parameters)
    y = y.astype(tensors[0].dtype).reshape(whole.shape)
    return (whole, y) if settings.residual else (y,), (whole, shift, rstd) if save else ()


def sum_of(x: jax.Array, residual: jax.Array) -> jax.Array:
    """`x + residual` in the residual's dtype: what is normalized is what is returned, rounding included."""
    return x.astype(residual.dtype) + residual


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """Gradients of the inputs; those of the parameters are float32 sums over the local rows."""
    (whole, shift, rstd), (scale, bias) = saved, parameters
    shape = before_axis_after(whole.shape, settings.axes)
    x, dy, kind = _wide(whole, shape), _wide(cotangents[-1], shape), settings.kind
    n = x.shape[1] * math.prod(map(jax.lax.axis_size, settings.feature_names))
    weight = formula.weight(scale, settings.scale_offset)
    g = dy if weight is None else dy * weight.reshape(1, -1, 1)

    def sums(terms):
        return _over_shards([jnp.sum(term, axis=1, keepdims=True) for term in terms(x, g)], settings.feature_names)

    mean, slope = formula.projections(kind, n, shift, rstd, sums)
    dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
    over_rows = functools.partial(jnp.sum, axis=(0, 2))
    dscale = None if scale is None else over_rows(dy * formula.centred(kind, x, shift) * rstd).reshape(scale.shape)
    dbias = None if bias is None else over_rows(dy).reshape(bias.shape)
    if settings.residual:
        dh = (dx + _wide(cotangents[0], shape)).reshape(whole.shape)
        return dh.astype(cotangents[1].dtype), dh.astype(whole.dtype), dscale, dbias
    return dx.reshape(whole.shape).astype(whole.dtype), dscale, dbias
