"""What is measured at the end of each task, as pure functions of arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax.diagnostics import dead_units as dead_units
from normjax.diagnostics import effective_rank as effective_rank


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
