"""Projection in XLA: the definition."""

import jax
import jax.numpy as jnp

from pallas_kernels._axes import wide


def factor(squares: jax.Array, radius: jax.Array) -> jax.Array:
    """What takes a weight of these sums of squares to its radius: 1 where its norm or radius is zero, or overflows."""
    length = jnp.sqrt(squares)
    valid = (radius > 0) & (length > 0) & (length < jnp.inf)
    return jnp.where(valid, radius / jnp.where(valid, length, 1.0), 1.0)


def project(weight: jax.Array, update: jax.Array | None, radius: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The weight or its sum with the update, at its radius, which has an axis of size one for each of `axes`."""
    moved = wide(weight) if update is None else wide(weight) + wide(update)
    return (moved * factor(jnp.sum(moved * moved, axes, keepdims=True), radius)).astype(weight.dtype)


def deferred(
    weight: jax.Array, before: jax.Array, update: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The sum of the update and the weight times its factor, and the sums of squares of what is stored of it."""
    # XLA may drop a cast to a narrower dtype and back, but never this.
    info = jnp.finfo(weight.dtype)
    stored = jax.lax.reduce_precision(wide(weight) * before + wide(update), info.nexp, info.nmant)
    return stored.astype(weight.dtype), jnp.sum(stored * stored, axes)
