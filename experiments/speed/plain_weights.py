"""The plainest formulas of the reparametrizations of a kernel whose last axis is its output units."""

import math

import jax
import jax.numpy as jnp

from experiments.speed.plain import Tree, batch_axes, wide


def _mean_and_variance(kernel: jax.Array, ddof: int = 0) -> tuple[jax.Array, jax.Array]:
    axes = batch_axes(kernel)
    return jnp.mean(wide(kernel), axes), jnp.var(wide(kernel), axes, ddof=ddof)


def _lengths(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), batch_axes(kernel)))


def centred_weight_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Centred units over their length."""
    centred = wide(x) - jnp.mean(wide(x), batch_axes(x))
    return (1.414 * centred / (_lengths(centred) + 1e-5)).astype(x.dtype)


def scaled_weight_standardization(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Standardized units over the root of their fan-in."""
    mean, var = _mean_and_variance(x)
    root = jnp.sqrt(var + 1e-6) * math.sqrt(x.size / x.shape[-1])
    return ((wide(x) - mean) * (params["scale"] / root)).astype(x.dtype)


def spectral_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """The kernel over its largest singular value, by one step of power iteration."""
    matrix = wide(x).reshape(-1, x.shape[-1])
    constant = jax.lax.stop_gradient(matrix)
    u = state["v"].reshape(-1) @ constant
    u = u / jnp.sqrt(jnp.sum(jnp.square(u)))
    v = constant @ u
    v = v / jnp.sqrt(jnp.sum(jnp.square(v)))
    return (wide(x) / (v @ matrix @ u)).astype(x.dtype)


def weight_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Units over their length, times a learned one."""
    return (wide(x) * (params["scale"] / _lengths(wide(x)))).astype(x.dtype)


def weight_standardization(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Standardized units, by the unbiased standard deviation."""
    mean, var = _mean_and_variance(x, ddof=1)
    return ((wide(x) - mean) / (jnp.sqrt(var) + 1e-5)).astype(x.dtype)
