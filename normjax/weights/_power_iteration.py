"""Power iteration on a kernel that is never reshaped to a matrix, so that its sharding stays what it is."""

import functools

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import EpsilonMode, inverse_root

Vectors = tuple[jax.Array, jax.Array]


# Outside of jit the loop would be compiled anew at every call.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def iterate(
    kernel: jax.Array, vectors: Vectors, axes: tuple[tuple[int, ...], ...], n_steps: int, epsilon: float, mode
) -> Vectors:
    """Returns both vectors after `n_steps`, the first one updated first; each lives on its own `axes` of the kernel."""

    def step(_, vectors):
        first = unit_vector(contract(kernel, vectors[1], axes[1]), epsilon, mode, old=vectors[0])
        return first, unit_vector(contract(kernel, first, axes[0]), epsilon, mode, old=vectors[1])

    # The first step outside of the loop: what it returns may be sharded as the kernel is, and stays so.
    vectors = step(0, vectors) if n_steps else vectors
    return jax.lax.fori_loop(1, n_steps, step, vectors) if n_steps > 1 else vectors


def contract(kernel: jax.Array, vector: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the sum of the kernel times the vector over the vector's axes."""
    # Not a matrix product: those round to bfloat16 on some accelerators, and may refuse sharded contractions.
    return jnp.sum(kernel * _checks.broadcast_to_features(vector, axes, kernel.ndim), axis=axes)


def unit_vector(vector: jax.Array, epsilon: float, mode: EpsilonMode, *, old: jax.Array) -> jax.Array:
    """Returns the vector at norm 1, and `old` for a zero vector: a stored zero would stay zero for good."""
    square = jnp.sum(vector * vector)
    return jnp.where(square > 0, vector * inverse_root(square, epsilon, mode), old)
