"""T5's relative position bias: one number a head for each bucket of distances, wider the farther."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import named


def buckets(distances: jax.Array, count: int, furthest: int, causal: bool) -> jax.Array:
    """The bucket of each signed distance (key minus query): half of them exact, the rest logarithmic."""
    offset = jnp.zeros_like(distances)
    if causal:
        distances = jnp.maximum(-distances, 0)
    else:
        count //= 2
        offset = jnp.where(distances > 0, count, 0)
        distances = jnp.abs(distances)
    exact = count // 2
    share = jnp.log(jnp.maximum(distances, 1).astype(jnp.float32) / exact) / math.log(furthest / exact)
    far = exact + (share * (count - exact)).astype(distances.dtype)
    return offset + jnp.where(distances < exact, distances, jnp.minimum(far, count - 1))


class RelativeBias(nnx.Module):
    """Scores' bias by distance, shared by all layers (T5)."""

    def __init__(self, heads: int, *, count: int = 32, furthest: int = 128, causal: bool = False, rngs: nnx.Rngs):
        """Makes `embedding`, `(count, heads)`.

        Args:
          heads: Number of heads.
          count: Number of buckets.
          furthest: Distance from which all fall into the last one.
          causal: Whether keys lie before their queries only.
          rngs: Random streams; `params` is used.
        """
        embedding = nnx.initializers.normal(1.0)(rngs.params(), (count, heads), jnp.float32)
        self.embedding = nnx.Param(embedding, **named(None, "heads"))
        self.count, self.furthest, self.causal = count, furthest, causal

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Returns the bias of queries and keys at `positions`, `(tokens,)`, as `(1, heads, tokens, tokens)`."""
        distances = positions[None, :] - positions[:, None]
        found = self.embedding[...][buckets(distances, self.count, self.furthest, self.causal)]
        return jnp.transpose(found, (2, 0, 1))[None]
