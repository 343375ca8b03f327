r"""Llama 4's temperature of queries, which grows with the position instead of the number of keys that a query sees."""

import jax
import jax.numpy as jnp


def relative_temperature(positions: jax.Array, *, period: int = 8192, strength: float = 0.1) -> jax.Array:
    r"""Llama 4's factor of the queries of layers without positions: $1 + a \log(1 + \lfloor (t+1)/P \rfloor)$.

    Args:
      positions: $t$, integer, from 0.
      period: $P$.
      strength: $a$.

    Returns:
      The factor in float32, shaped like `positions`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> [round(float(t), 4) for t in nj.relative_temperature(jnp.array([0, 8191, 100_000]))]
      [1.0, 1.0693, 1.2565]
    """
    whole = (jnp.asarray(positions) + 1) // period
    return 1 + strength * jnp.log1p(whole.astype(jnp.float32))
