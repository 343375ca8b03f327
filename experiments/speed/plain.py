"""The plainest correct formula of every method in `jax.numpy`: two passes, float32, no masks, no custom derivative.

What a user would write without a library; the yardstick that no method of the library may fall far behind.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def wide(x: jax.Array) -> jax.Array:
    """The input in float32."""
    return x.astype(jnp.float32)


def standardized(x: jax.Array, axes: Any, epsilon: float) -> jax.Array:
    """The value minus its mean over its standard deviation."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)


def affine(params: Tree, y: jax.Array, dtype: Any) -> jax.Array:
    """Scale and bias where there are some, on the last axis."""
    y = y * params["scale"] if "scale" in params else y
    return (y + params["bias"] if "bias" in params else y).astype(dtype)


def layer_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Layer normalization."""
    del state
    return affine(params, standardized(wide(x), -1, 1e-6), x.dtype)


def rms_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Root mean square normalization."""
    del state
    y = wide(x) * jax.lax.rsqrt(jnp.mean(jnp.square(wide(x)), -1, keepdims=True) + 1e-6)
    return affine(params, y, x.dtype)


def batch_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Batch normalization by the batch's statistics."""
    del state
    return affine(params, standardized(wide(x), tuple(range(x.ndim - 1)), 1e-5), x.dtype)


def group_norm(params: Tree, state: Tree, x: jax.Array, groups: int = 32) -> jax.Array:
    """Group normalization."""
    del state
    cut = wide(x).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    return affine(params, standardized(cut, (1, 3), 1e-6).reshape(x.shape), x.dtype)
