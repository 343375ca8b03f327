r"""Rotary position embedding: pairs of features are rotated by angles that grow with the position."""

import dataclasses

import jax
import jax.numpy as jnp

from normjax import _checks


@dataclasses.dataclass(frozen=True)
class Rope:
    r"""Rotates pair $i$ of a head's first $d$ features by $p\,\theta^{-2i/d}$ at position $p$.

    Attributes:
      theta: Base of the wavelengths.
      interleaved: Whether pairs are neighbours (GLM, the original); otherwise feature $i$ goes with $i + d/2$ (Llama).
      fraction: Share of a head's features that are rotated.

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
