r"""A learned balance between residual and update that keeps their summed variance (Muse Spark).

$$\beta = \sigma(g / T),\qquad y = \sqrt{\max(1 - \beta^2,\ 10^{-3})}\; r + \beta\, h$$

One gate for each feature. Where residual and update are independent and of unit variance, so is their sum: the residual
stream does not grow with depth.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.precision import statistics_dtype


def residual_gate(
    residual: jax.Array,
    update: jax.Array,
    gate: jax.Array,
    *,
    temperature: float = 0.3,
    floor: float = 1e-3,
) -> jax.Array:
    r"""Adds an update to a residual by a gate: $y = \sqrt{1 - \beta^2}\, r + \beta\, h$.

    Args:
      residual: $r$, floating, `(..., features)`.
      update: $h$, shaped like the residual: the output of a sublayer.
      gate: $g$, `(features,)`.
      temperature: $T > 0$.
      floor: Least value under the root, where the gate saturates.

    Returns:
      The sum, shaped like the residual, in the dtype that JAX promotes the three to.

    Raises:
      ValueError: If the shapes do not fit or the temperature is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.models import residual_gate
      >>> y = residual_gate(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([0.0, -9.0]))
      >>> bool(jnp.allclose(y, jnp.array([[0.75**0.5, 1.0]])))
      True

    References:
      Muse Spark in Hugging Face's transformers, `MuseSparkResidualGate`.
    """
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, got temperature={temperature!r}.")
    if residual.shape != update.shape:
        raise ValueError(f"the update has shape {update.shape}, expected that of the residual, {residual.shape}.")
    _checks.check_parameter("gate", gate, residual.shape, residual.shape[-1:])
    logits = gate / temperature
    beta = _sigmoid(logits)
    # 1 - beta² without cancellation where beta is near 1.
    alpha = jnp.sqrt(jnp.maximum(_sigmoid(-logits) * (1 + beta), floor))
    alpha, beta = (_checks.broadcast_to_features(a, (residual.ndim - 1,), residual.ndim) for a in (alpha, beta))
    return alpha * residual + beta * update


def _sigmoid(logits):
    # JAX's own is off by some units in the last place of bfloat16; the model's is rounded once.
    return jax.nn.sigmoid(logits.astype(statistics_dtype(logits.dtype))).astype(logits.dtype)


class ResidualGate(nnx.Module):
    """`residual_gate` with the gate as a parameter, drawn from a normal distribution of deviation 0.02.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> gate = nj.models.ResidualGate(4, rngs=nnx.Rngs(0))
      >>> gate(jnp.ones((2, 4)), jnp.ones((2, 4))).shape
      (2, 4)
    """

    def __init__(self, features: int, *, temperature: float = 0.3, rngs: nnx.Rngs):
        """Makes the gate.

        Args:
          features: Width of the residual.
          temperature: As in `residual_gate`.
          rngs: Random streams; `params` is used.
        """
        self.temperature = temperature
        self.gate = nnx.Param(0.02 * jax.random.normal(rngs.params(), (features,)))

    def __call__(self, residual: jax.Array, update: jax.Array) -> jax.Array:
        """Adds the update to the residual.

        Args:
          residual: Floating, `(..., features)`.
          update: Shaped like the residual.

        Returns:
          The sum, shaped like the residual.
        """
        return residual_gate(residual, update, self.gate[...], temperature=self.temperature)
