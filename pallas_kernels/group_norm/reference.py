"""Group norm in XLA: the definition, and a form for a space that is split over devices.

Sums over space keep every channel; only those small arrays are regrouped, since splitting the channels of x itself
would change its layout on a TPU.
"""

import math

import jax
import jax.numpy as jnp

from pallas_kernels._axes import wide
from pallas_kernels.group_norm import formula
from pallas_kernels.group_norm.formula import GroupNorm


def forward(settings: GroupNorm, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """Outputs, and what the backward pass needs; statistics are `(batch, groups)`."""
    x, scale, bias = inputs
    # Cast once: automatic differentiation adds the cotangents of all uses before it rounds.
    values = wide(x)
    mean, rstd = statistics(settings, values)
    outputs = (normalized(values, mean, rstd, scale, bias).astype(x.dtype),)
    return outputs, (x, mean, rstd) if save else ()


def backward(settings: GroupNorm, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """Gradients of the inputs; those of the parameters are float32 sums over the local batch and space."""
    (x, mean, _), (dy,) = saved, cotangents
    sums = [jnp.sum(term, _space(x)) for term in (wide(dy) * centred(x, mean), wide(dy))]
    return gradients(settings, parameters, saved, dy, (sums[0], sums[1]))


def statistics(settings: GroupNorm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and rstd of each group, in two sweeps: E[x²] − E[x]² would cancel."""
    local = _elements(x, settings.groups)
    mean = group_sums(jnp.sum(x, _space(x)), settings.groups) / local
    square = group_sums(jnp.sum(centred(x, mean) ** 2, _space(x)), settings.groups)
    if not settings.space_names:
        return mean, jax.lax.rsqrt(square / local + settings.epsilon)
    # The shards' own means and variances meet in one all-reduce, and cancel nothing.
    names = settings.space_names
    slots = jnp.zeros((_shards(settings), 2, *mean.shape), x.dtype)
    slots = jax.lax.psum(slots.at[jax.lax.axis_index(names)].set(jnp.stack([mean, square / local])), names)
    means, variances = slots[:, 0], slots[:, 1]
    mean = jnp.mean(means, axis=0)
    variance = jnp.mean(variances + jnp.square(means - mean[None]), axis=0)
    return mean, jax.lax.rsqrt(variance + settings.epsilon)


def normalized(
    x: jax.Array, mean: jax.Array, rstd: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """The output of float32 values, elementwise."""
    rstd = channels(rstd, x)
    y = centred(x, mean) * over_space(formula.weight(rstd, _row(scale, rstd)), x)
    shift = _row(bias, rstd)
    return y if shift is None else y + over_space(shift, x)


def gradients(
    settings: GroupNorm, parameters: tuple, saved: tuple, dy: jax.Array, sums: tuple[jax.Array, jax.Array]
) -> tuple:
    """Gradients of the inputs from the sums of (x − mean) dy and of dy over the local space, `(batch, channels)`."""
    (x, mean, rstd), (scale, bias), (product, total) = saved, parameters, sums
    rstd, names = channels(rstd, x), settings.space_names
    everywhere = jax.lax.psum(jnp.stack(sums), names) if names else sums
    elements = _elements(x, settings.groups) * _shards(settings)
    group_mean = lambda v: channels(group_sums(v, settings.groups) / elements, x)  # noqa: E731
    by = formula.coefficients(everywhere[0], everywhere[1], rstd, _row(scale, rstd), group_mean)
    by = formula.Coefficients(*(over_space(c, x) for c in by))
    dx = formula.input_gradient(wide(dy), centred(x, mean), by).astype(x.dtype)
    return dx, None if scale is None else jnp.sum(rstd * product, 0), None if bias is None else jnp.sum(total, 0)


def centred(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Values minus the mean of their group, in float32."""
    return wide(x) - over_space(channels(mean, x), x)


def group_sums(rows: jax.Array, groups: int) -> jax.Array:
    """(batch, channels) to (batch, groups)."""
    return jnp.sum(rows.reshape(rows.shape[0], groups, -1), -1)


def channels(statistic: jax.Array, x: jax.Array) -> jax.Array:
    """(batch, groups) to (batch, channels)."""
    batch, groups = statistic.shape
    # jnp.repeat would be a gather, which XLA does not split over devices.
    each = jnp.broadcast_to(statistic[:, :, None], (batch, groups, x.shape[-1] // groups))
    return each.reshape(batch, x.shape[-1])


def over_space(rows: jax.Array, x: jax.Array) -> jax.Array:
    """(batch, channels) or (1, channels), which broadcasts to x."""
    return jnp.expand_dims(rows, _space(x))


def _row(parameter: jax.Array | None, like: jax.Array) -> jax.Array | None:
    return None if parameter is None else parameter[None].astype(like.dtype)


def _space(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim - 1))


def _elements(x: jax.Array, groups: int) -> int:
    """Elements of a group of a sample on this device."""
    return math.prod(x.shape[1:]) // groups


def _shards(settings: GroupNorm) -> int:
    return math.prod(map(jax.lax.axis_size, settings.space_names))
