r"""Two temperatures of attention: one learned and bounded (Swin V2), one that grows with the position (Llama 4).

Swin clamps in the graph: above the maximum the gradient is zero, and a parameter that got there stays. DiMR clamps the
parameter itself before it uses it, so that its gradient never vanishes: `clamp="parameter"` has that value and
gradient; for the same trajectory clamp the parameter after each update too.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import promote

Clamp = Literal["graph", "parameter"]


def learned_temperature(log_temperature: jax.Array, *, maximum: float = 100.0, clamp: Clamp = "graph") -> jax.Array:
    r"""The temperature $\exp(\min(s, \log \text{maximum}))$.

    Args:
      log_temperature: $s$, any shape.
      maximum: Largest temperature; infinite for none.
      clamp: `"graph"` has a zero gradient above the maximum, `"parameter"` that of a parameter moved to the maximum.

    Returns:
      The temperature, in at least float32, shaped like $s$.

    Raises:
      ValueError: If the maximum is not positive or the clamp is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> s = jnp.log(jnp.array([10.0, 1000.0]))
      >>> [round(float(t), 3) for t in nj.learned_temperature(s)]
      [10.0, 100.0]
      >>> round(float(jax.grad(lambda s: nj.learned_temperature(s, clamp="parameter"))(s[1])), 3)
      100.0

    References:
      Liu et al. 2021, [Swin Transformer V2](https://arxiv.org/abs/2111.09883).
    """
    check_clamp(maximum, clamp)
    wide = log_temperature.astype(promote(log_temperature.dtype, jnp.float32))
    largest = jnp.asarray(math.log(maximum), wide.dtype)
    # At the maximum itself torch's clamp passes the gradient, and jnp.minimum would halve it.
    clamped = jnp.where(wide <= largest, wide, largest)
    if clamp == "parameter":
        clamped = wide + jax.lax.stop_gradient(clamped - wide)
    return jnp.exp(clamped)


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


def check_clamp(maximum: float, clamp: str) -> None:
    """Raises `ValueError` unless the clamp is known and the maximum positive."""
    _checks.check_choice("clamp", clamp, Clamp)
    if not maximum > 0:
        raise ValueError(f"expected maximum > 0, got maximum={maximum!r}.")
