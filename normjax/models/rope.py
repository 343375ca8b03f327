r"""Rotary position embedding: pairs of features are rotated by angles that grow with the position."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from normjax import _checks


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor: all rates are (Gemma 3's whole contexts).

    Attributes:
      factor: Of the length of the context.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.models.LinearScaling(8.0)(jnp.array([1.0, 0.5])))
      [0.125  0.0625]
    """

    factor: float

    def __call__(self, rates: jax.Array) -> jax.Array:
        """Maps rates in radians per position to slower ones."""
        return rates / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow rates divided by a factor, fast ones kept, those between interpolated (Llama 3.1).

    Attributes:
      factor: Of the length of the context.
      low: Turns within the original context up to which a rate is slow.
      high: Turns from which it is fast.
      original: Length of the context before it was extended.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> rates = nj.models.Llama3Scaling(8.0, 1.0, 4.0, 8192)(jnp.array([1.0, 1e-3, 1e-5]))
      >>> [f"{rate:.3g}" for rate in rates]
      ['1', '0.000214', '1.25e-06']

    References:
      Grattafiori et al. 2024, [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783).
    """

    factor: float
    low: float
    high: float
    original: int

    def __call__(self, rates: jax.Array) -> jax.Array:
        """Maps rates in radians per position to slower ones."""
        turns = self.original * rates / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return rates * ((1 - kept) / self.factor + kept)


@dataclasses.dataclass(frozen=True)
class Rope:
    r"""Rotates pair $i$ of a head's first $d$ features by $p\,\theta^{-2i/d}$ at position $p$.

    Attributes:
      theta: Base of the wavelengths.
      interleaved: Whether pairs are neighbours (GLM, the original); otherwise feature $i$ goes with $i + d/2$ (Llama).
      fraction: Share of a head's features that are rotated.
      scaling: Maps the rates to those of a longer context, or `None`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> q = nj.models.Rope()(jnp.ones((1, 2, 1, 2)), jnp.arange(2))
      >>> print((100 * q[0, 1, 0]).round())
      [-30. 138.]

    References:
      Su et al. 2021, [RoFormer](https://arxiv.org/abs/2104.09864).
    """

    theta: float = 10_000.0
    interleaved: bool = False
    fraction: float = 1.0
    scaling: Callable[[jax.Array], jax.Array] | None = None

    def __post_init__(self):
        """Rejects a share outside [0, 1]."""
        _checks.check_fraction("fraction", self.fraction)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates queries or keys.

        Args:
          x: `(batch, tokens, heads, features)`.
          positions: Integers, `(tokens,)` or `(batch, tokens)`.

        Returns:
          An array like `x`; the angles are float32 whatever its dtype.
        """
        rotated = int(self.fraction * x.shape[-1]) // 2 * 2
        rates = self.theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
        rates = rates if self.scaling is None else self.scaling(rates)
        positions = positions.reshape(-1, positions.shape[-1], 1, 1)
        angles = positions.astype(jnp.float32) * rates[None, None, None]
        cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
        turned, rest = x[..., :rotated], x[..., rotated:]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
        else:
            a, b = jnp.split(turned, 2, -1)
            turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned
