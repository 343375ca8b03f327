"""What is measured at the end of each task, as pure functions of arrays."""

from typing import Any

import jax
import jax.numpy as jnp


def dead_units(activations: jax.Array) -> jax.Array:
    """Fraction of units `(n, units)` that are zero for every one of the n inputs."""
    return jnp.mean(jnp.all(activations <= 0, axis=0), dtype=jnp.float32)


def effective_rank(features: jax.Array) -> jax.Array:
    r"""Effective rank of a feature matrix `(n, d)`: $\exp(-\sum_i p_i \log p_i)$, $p_i = \sigma_i / \sum_j \sigma_j$.

    Between 1 and `min(n, d)`; 0 for a matrix of zeros.

    References:
      Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality.
    """
    singular = jnp.linalg.svd(features, compute_uv=False)
    total = jnp.sum(singular)
    p = singular / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def affine_norm(params: dict[str, Any]) -> jax.Array:
    r"""Joint norm of scale and offset per feature, $\sqrt{(\|\gamma\|^2 + \|\beta\|^2) / d}$, averaged over norms.

    1 at initialisation; NaN if the network has no norm.
    """
    norms = [
        jnp.sqrt(jnp.mean(jnp.square(layer["scale"]) + jnp.square(layer["bias"])))
        for name, layer in params.items()
        if name.startswith("norm_")
    ]
    return jnp.mean(jnp.stack(norms)) if norms else jnp.asarray(jnp.nan, jnp.float32)
