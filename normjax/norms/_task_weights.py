"""How much each task of a batch weighs in AdaB²N's statistics."""

import jax
import jax.numpy as jnp

from normjax.reductions import Standardization, across, count_valid


def task_weights(
    values: jax.Array,
    mask: jax.Array | None,
    task: jax.Array,
    task_weight: jax.Array,
    current: jax.Array,
    spec: Standardization,
    renormalize: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns each position's weight, the mass of absent tasks, the number of valid positions, the current task."""
    if not jnp.issubdtype(task.dtype, jnp.integer):
        raise TypeError(f"expected integer task numbers, got task of dtype {task.dtype}.")
    if task.shape != values.shape[:1] or 0 not in spec.axes:
        raise ValueError(
            f"expected one task number for each sample on the first axis of an input of shape {values.shape}, got task "
            f"of shape {task.shape}."
        )
    ndim, dtype = values.ndim, values.dtype

    def column(a, axis):
        return jnp.expand_dims(a, [i for i in range(ndim + 1) if i != axis])

    def total(a):
        return across(jnp.sum(a, axis=1, keepdims=True), spec)

    tasks = column(jnp.arange(task_weight.shape[0], dtype=jnp.int32), 0)
    inside = Standardization(tuple(a for a in spec.axes if a != 0))
    per_sample = count_valid(values, mask, inside)[None]
    member = (column(task.astype(jnp.int32), 1) == tasks) & (per_sample > 0)
    samples, positions = total(member.astype(dtype)), total(jnp.where(member, per_sample, 0))
    present = samples > 0
    features = tuple(range(1, ndim + 1))
    current = jnp.maximum(current, jnp.max(jnp.where(jnp.any(present, features, keepdims=True), tasks, 0)))
    allowed = tasks <= current
    if renormalize:
        allowed &= present | ~jnp.any(present, 0, keepdims=True)
    logits = jnp.logaddexp(column(task_weight.astype(dtype), 0), jnp.log(samples))
    # The softmax of logarithms: a single task has weight 1 and its parameter a gradient of exactly 0.
    omega = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=0)
    absent = jnp.sum(jnp.where(present, 0, omega), axis=0)
    weights = jnp.sum(jnp.where(member, omega / jnp.maximum(positions, 1), 0), axis=0)
    weights = weights if mask is None else jnp.where(mask, weights, 0)
    return weights, absent, jnp.sum(positions, axis=0), current
