"""Row norms in XLA: the definition, and a form for features that are split over devices.

Nothing is reshaped here, since a reshape of a sharded array may cost a collective.
"""

import math

import jax
import jax.numpy as jnp

from pallas_kernels._axes import before_axis_after, wide
from pallas_kernels.row_norm import formula, gate
from pallas_kernels.row_norm.formula import RowNorm


def forward(settings: RowNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """Outputs, and what the backward pass needs; statistics are `(before, 1, after)`."""
    *tensors, scale, bias = inputs
    x = _sum(*tensors) if settings.residual else wide(tensors[0])
    whole = x.astype(tensors[1].dtype) if settings.residual else tensors[0]
    z = wide(tensors[1]).astype(x.dtype) if settings.gate else None
    x = gate.before(settings.gate, x, z)
    shift, rstd = _statistics(settings, x)
    weight, bias = (_along(p, x, settings) for p in (formula.weight(scale, settings.scale_offset), bias))
    y = formula.output(formula.centred(settings.kind, x, shift), rstd, weight, bias)
    y = gate.after(settings.gate, y, z).astype(tensors[0].dtype)
    outputs = (whole, y) if settings.residual else (y,)
    if not save:
        return outputs, ()
    before, _, after = before_axis_after(x.shape, settings.axes)
    kept = tensors if settings.gate else (whole,)
    return outputs, (*kept, *(None if s is None else s.reshape(before, 1, after) for s in (shift, rstd)))


def backward(settings: RowNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """Gradients of the inputs; those of the parameters are float32 sums over the local rows."""
    (whole, *gates, shift, rstd), (scale, bias), kind = saved, parameters, settings.kind
    z = wide(gates[0]).astype(wide(whole).dtype) if settings.gate else None
    x, dy = gate.before(settings.gate, wide(whole), z), gate.after(settings.gate, wide(cotangents[-1]), z)
    kept = [1 if a in settings.axes else size for a, size in enumerate(x.shape)]
    shift, rstd = None if shift is None else shift.reshape(kept), rstd.reshape(kept)
    weight = _along(formula.weight(scale, settings.scale_offset), x, settings)
    g = dy if weight is None else dy * weight
    sums = lambda terms: _sums(terms(x, g), settings)  # noqa: E731
    mean, slope = formula.projections(kind, _features(settings, x), shift, rstd, sums)
    dx = formula.input_gradient(kind, x, g, shift, rstd, mean, slope)
    rows = _rows(x, settings)
    dscale = None if scale is None else jnp.sum(dy * (formula.centred(kind, x, shift) * rstd), rows)
    dbias = None if bias is None else jnp.sum(dy, rows)
    if settings.residual:
        dx = dx + wide(cotangents[0])
        return dx.astype(cotangents[1].dtype), dx.astype(whole.dtype), dscale, dbias
    if settings.gate is not None and z is not None:
        y = formula.output(formula.centred(kind, x, shift), rstd, weight, None)
        dx, dz = gate.gradients(settings.gate, wide(whole), z, y, wide(cotangents[0]), dx)
        return dx.astype(whole.dtype), dz.astype(gates[0].dtype), dscale, dbias
    return dx.astype(whole.dtype), dscale, dbias


def _sum(x: jax.Array, residual: jax.Array) -> jax.Array:
    """`x + residual`, already rounded to the residual's dtype: what is normalized is what is returned."""
    total = wide(x.astype(residual.dtype)) + wide(residual)
    # XLA may drop a cast to a narrower dtype and back, but never this. Both cotangents meet before they are rounded.
    info = jnp.finfo(residual.dtype)
    return jax.lax.reduce_precision(total, info.nexp, info.nmant)


def _along(parameter: jax.Array | None, x: jax.Array, settings: RowNorm) -> jax.Array | None:
    """A parameter that broadcasts to x."""
    if parameter is None:
        return None
    return jnp.expand_dims(parameter, _rows(x, settings)).astype(x.dtype)


def _rows(x: jax.Array, settings: RowNorm) -> tuple[int, ...]:
    """The axes along which a parameter is one."""
    own = (0, *settings.axes) if settings.samples else settings.axes
    return tuple(a for a in range(x.ndim) if a not in own)


def _features(settings: RowNorm, x: jax.Array) -> int:
    """Features of a row on all devices."""
    return math.prod(x.shape[a] for a in settings.axes) * math.prod(map(jax.lax.axis_size, settings.feature_names))


def _sums(terms: tuple[jax.Array, ...], settings: RowNorm) -> tuple[jax.Array, ...]:
    """Sums over the rows' features, on all devices in one all-reduce."""
    sums = [jnp.sum(term, axis=settings.axes, keepdims=True) for term in terms]
    return tuple(jax.lax.psum(jnp.stack(sums), settings.feature_names)) if settings.feature_names else tuple(sums)


def _statistics(settings: RowNorm, x: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    if settings.feature_names and settings.kind == "layer":
        return _merged_statistics(settings, x)
    sums = lambda terms: _sums(terms(x), settings)  # noqa: E731
    return formula.statistics(settings.kind, _features(settings, x), settings.epsilon, sums)


def _merged_statistics(settings: RowNorm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and rstd from the shards' own means and variances, which meet in one all-reduce and cancel nothing."""
    names = settings.feature_names
    mean = jnp.mean(x, axis=settings.axes, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=settings.axes, keepdims=True)
    slots = jnp.zeros((math.prod(map(jax.lax.axis_size, names)), 2, *mean.shape), x.dtype)
    slots = jax.lax.psum(slots.at[jax.lax.axis_index(names)].set(jnp.stack([mean, variance])), names)
    means, variances = slots[:, 0], slots[:, 1]
    mean = jnp.mean(means, axis=0, keepdims=True)
    variance = jnp.mean(variances + (means - mean) ** 2, axis=0)
    return mean[0], jax.lax.rsqrt(variance + settings.epsilon)
