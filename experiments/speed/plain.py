"""The plainest correct formulas in `jax.numpy` of norms over the batch, over tokens and over images.

Two passes, float32, no masks, no custom derivative: what a user would write without a library, and the yardstick that
no method of the library may fall far behind. Every function is `formula(params, state, x, **context) -> y`.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def wide(x: jax.Array) -> jax.Array:
    """The input in float32."""
    return x.astype(jnp.float32)


def batch_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes but the last."""
    return tuple(range(x.ndim - 1))


def space_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes but the first and the last."""
    return tuple(range(1, x.ndim - 1))


def standardized(x: jax.Array, axes: Any, epsilon: float) -> jax.Array:
    """The value minus its mean over its standard deviation."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)


def scaled(x: jax.Array, axes: Any, epsilon: float) -> jax.Array:
    """The value over its root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + epsilon)


def affine(params: Tree, y: jax.Array, dtype: Any) -> jax.Array:
    """Scale and bias where there are some, on the last axis."""
    y = y * params["scale"] if "scale" in params else y
    return (y + params["bias"] if "bias" in params else y).astype(dtype)


def grouped(x: jax.Array, groups: int) -> jax.Array:
    """The input with its positions on one axis and its channels cut into groups."""
    return x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)


def layer_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Layer normalization."""
    return affine(params, standardized(wide(x), -1, 1e-6), x.dtype)


def rms_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Root mean square normalization."""
    return affine(params, scaled(wide(x), -1, 1e-6), x.dtype)


def batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Batch normalization by the batch's statistics."""
    return affine(params, standardized(wide(x), batch_axes(x), 1e-5), x.dtype)


def group_norm(params: Tree, state: Tree, x: jax.Array, groups: int = 32) -> jax.Array:
    """Group normalization."""
    y = standardized(grouped(wide(x), groups), (1, 3), 1e-6)
    return affine(params, y.reshape(x.shape), x.dtype)


def instance_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Instance normalization."""
    return affine(params, standardized(wide(x), space_axes(x), 1e-6), x.dtype)


def unified_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Unified Normalization in its warm-up."""
    return affine(params, scaled(wide(x), batch_axes(x), 1e-5), x.dtype)


def power_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """PowerNorm in its warm-up, one group."""
    return affine(params, scaled(scaled(wide(x), -1, 1e-5), batch_axes(x), 1e-5), x.dtype)


def rep_batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """RepBN."""
    return affine(params, standardized(wide(x), batch_axes(x), 1e-5), x.dtype) + params["alpha"] * x


def prep_batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """PRepBN at the weights of its counters."""
    weight = state["weights"]["iter"] / state["weights"]["total"]
    token = affine(params["0"], standardized(wide(x), -1, 1e-5), x.dtype)
    return weight * token + (1 - weight) * rep_batch_norm(params["1"], state["1"], x)


def continual_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Group norm without affine, then batch norm."""
    y = standardized(grouped(wide(x), 32), (1, 3), 1e-5).reshape(x.shape)
    return affine(params["1"], standardized(y, batch_axes(x), 1e-5), x.dtype)


def batch_channel_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Batch norm, then group norm with one affine pair a group."""
    y = affine(params["0"], standardized(wide(x), batch_axes(x), 1e-5), jnp.float32)
    y = standardized(grouped(y, 32), (1, 3), 1e-5)
    return (y * params["1"]["scale"][:, None] + params["1"]["bias"][:, None]).reshape(x.shape).astype(x.dtype)


def estimated_batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """EstBN: by statistics that have moved, which are constants."""
    speed, axes = state["moving_speed"], batch_axes(x)
    centred = wide(x) - state["mean"]
    mean = state["mean"] + speed * jnp.mean(centred, axes)
    var = (1 - speed) * state["var"] + speed * jnp.mean(jnp.square(centred), axes)
    mean, var = jax.lax.stop_gradient((mean, var))
    return affine(params, (wide(x) - mean) * jax.lax.rsqrt(var + 1e-5), x.dtype)


def adaptive_balance_norm(params: Tree, state: Tree, x: jax.Array, task: jax.Array) -> jax.Array:
    """AdaB2N: samples weighted by the share of their task."""
    one_hot = jax.nn.one_hot(task, params["task_weight"].size)
    counts = one_hot.sum(0)
    seen = jnp.arange(counts.size) <= jnp.max(task)
    shares = jnp.where(seen, jnp.exp(params["task_weight"]) + counts, 0)
    weights = one_hot @ (shares / shares.sum() / jnp.maximum(counts, 1))
    mean = jnp.tensordot(weights, jnp.mean(wide(x), space_axes(x)), 1)
    var = jnp.tensordot(weights, jnp.mean(jnp.square(wide(x) - mean), space_axes(x)), 1)
    return affine(params, (wide(x) - mean) * jax.lax.rsqrt(var + 1e-5), x.dtype)


def batch_renorm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Batch renormalization, clipped to r in [1/3, 3] and d in [-5, 5]."""
    axes = batch_axes(x)
    mean = jnp.mean(wide(x), axes)
    centred = wide(x) - mean
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes) + 1e-3)
    running = jnp.maximum(state["renorm_stddev"], 1e-3**0.5)
    r = jnp.clip(deviation / running, 1 / 3, 3)
    d = jnp.clip((mean - state["renorm_mean"]) / running, -5, 5)
    r, d = jax.lax.stop_gradient((r, d))
    return affine(params, centred / deviation * r + d, x.dtype)


def switch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Switchable Normalization of images."""
    values, positions = wide(x), x.size // x.shape[0] // x.shape[-1]
    mean = jnp.mean(values, space_axes(x), keepdims=True)
    var = jnp.sum(jnp.square(values - mean), space_axes(x), keepdims=True) / (positions - 1)
    means, variances = [mean], [var]
    for axis in (-1, 0):
        mixed = jnp.mean(mean, axis, keepdims=True)
        means.append(mixed)
        variances.append(jnp.mean(var, axis, keepdims=True) + jnp.mean(jnp.square(mean - mixed), axis, keepdims=True))
    weights = jax.nn.softmax(params["mean_logits"]), jax.nn.softmax(params["var_logits"])
    mean = sum(w * m for w, m in zip(weights[0], means, strict=True))
    var = sum(w * v for w, v in zip(weights[1], variances, strict=True))
    return affine(params, (values - mean) * jax.lax.rsqrt(var + 1e-5), x.dtype)


def instance_batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """IBN: instance norm of the first half, batch norm of the rest."""
    half = x.shape[-1] // 2
    first, rest = wide(x[..., :half]), wide(x[..., half:])
    first = affine(params["0"], standardized(first, space_axes(x), 1e-5), x.dtype)
    rest = affine(params["1"], standardized(rest, batch_axes(x), 1e-5), x.dtype)
    return jnp.concatenate([first, rest], -1)


def evo_norm_b(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """EvoNorm B0."""
    batch = jnp.sqrt(jnp.var(wide(x), batch_axes(x)) + 1e-5)
    instance = jnp.sqrt(jnp.var(wide(x), space_axes(x), keepdims=True) + 1e-5)
    return affine(params, wide(x) / jnp.maximum(batch, params["v"] * wide(x) + instance), x.dtype)


def evo_norm_s(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """EvoNorm S0."""
    var = jnp.var(grouped(wide(x), 32), (1, 3), keepdims=True)
    factor = jnp.broadcast_to(jax.lax.rsqrt(var + 1e-5), (x.shape[0], 1, 32, x.shape[-1] // 32))
    factor = factor.reshape(x.shape[0], *[1] * (x.ndim - 2), -1)
    return affine(params, wide(x) * jax.nn.sigmoid(params["v"] * wide(x)) * factor, x.dtype)


def filter_response_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """FRN with its threshold."""
    return jnp.maximum(affine(params, scaled(wide(x), space_axes(x), 1e-6), x.dtype), params["tau"])


def mask_carrying_norm(params: Tree, state: Tree, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Layer masking: batch norm over what the mask keeps, zero elsewhere."""
    axes, kept = batch_axes(x), mask.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(kept), 1)
    centred = wide(x) - jnp.sum(kept * wide(x), axes) / count
    var = jnp.sum(kept * jnp.square(centred), axes) / count
    return kept * affine(params, centred * jax.lax.rsqrt(var + 1e-5), x.dtype)
