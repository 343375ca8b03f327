"""An encoder: embeddings of tokens, positions and types, a stack, and the heads that BERT puts on it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named, named_norm
from normjax.models.transformer import Transformer, TransformerConfig

_EMBEDDING_INIT = nnx.initializers.normal(0.02)


class MaskedHead(nnx.Module):
    r"""BERT's prediction of masked tokens: $E\, N(\phi(W y + b)) + b_E$ with the embedding $E$.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.presets.bert(layers=1, features=4, heads=1, hidden=8)
      >>> embedding = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
      >>> nj.models.MaskedHead(config, 5, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 4)), embedding).shape
      (1, 3, 5)
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, *, rngs: nnx.Rngs):
        """Makes `dense`, `norm` and `bias`.

        Args:
          config: Of the stack, for its features, norm, activation and dtypes.
          vocabulary: Number of tokens.
          rngs: Random streams; `params` is used.
        """
        dtypes: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        options: dict[str, Any] = {"kernel_init": config.kernel_init, **linear_names("embed", None), **dtypes}
        self.dense = nnx.Linear(config.features, config.features, **options, rngs=rngs)
        self.norm = named_norm(config.placement.norm, config.features, rngs)
        self.bias = nnx.Param(jnp.zeros((vocabulary,), config.param_dtype), **named("vocab"))
        self.activation = config.activation

    def __call__(self, y: jax.Array, embedding: nnx.Embed) -> jax.Array:
        """Maps `(batch, tokens, features)` to logits `(batch, tokens, vocabulary)`."""
        logits = embedding.attend(self.norm(self.activation(self.dense(y))))
        return logits + self.bias[...].astype(logits.dtype).reshape(1, 1, -1)


class Encoder(nnx.Module):
    r"""The stream $T(E_t + P + S_s)$ of a whole sequence, with BERT's pooler and masked-token head if asked for.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.presets.bert(layers=1, features=8, heads=2, hidden=16)
      >>> options = {"vocabulary": 11, "max_tokens": 4, "types": 2, "pooler": True, "masked_head": True}
      >>> bert, tokens = nj.models.Encoder(config, **options, rngs=nnx.Rngs(0)), jnp.array([[1, 2, 3]])
      >>> y = bert(tokens)
      >>> y.shape, bert.pooled(y).shape, bert.logits(y).shape
      ((1, 3, 8), (1, 8), (1, 3, 11))
      >>> config = nj.models.presets.t5_encoder(layers=1, features=8, heads=2, hidden=16)
      >>> init = nnx.initializers.normal(1.0)
      >>> t5 = lambda: nj.models.Encoder(config, vocabulary=11, embedding_init=init, rngs=nnx.Rngs(0))(tokens)
      >>> nnx.eval_shape(t5).shape
      (1, 3, 8)

    References:
      Devlin et al. 2018, [BERT](https://arxiv.org/abs/1810.04805); Raffel et al. 2019,
      [T5](https://arxiv.org/abs/1910.10683).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        vocabulary: int,
        max_tokens: int | None = None,
        types: int | None = None,
        pooler: bool = False,
        masked_head: bool = False,
        embedding_init: Callable[..., jax.Array] = _EMBEDDING_INIT,
        rngs: nnx.Rngs,
    ):
        """Makes `embedding`, `stack`, and `position_embedding`, `type_embedding`, `pooler`, `head` if asked for.

        Args:
          config: The stack; its kinds of attention say whether tokens see those after them.
          vocabulary: Number of tokens.
          max_tokens: Length of a learned position embedding (BERT); `None` for none (T5).
          types: Number of types of tokens, such as BERT's first and second sentence; `None` for none.
          pooler: Whether there is a layer for the first token.
          masked_head: Whether there is a head for masked tokens.
          embedding_init: Initializer of the embeddings.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("vocabulary", vocabulary, 1)
        dtypes: dict[str, Any] = {"param_dtype": config.param_dtype, "dtype": config.dtype}

        def embed(count, name):
            options = {"embedding_init": embedding_init, "embedding_metadata": named(name, "embed"), **dtypes}
            return nnx.Embed(count, config.features, **options, rngs=rngs)

        self.embedding = embed(vocabulary, "vocab")
        self.position_embedding = None if max_tokens is None else embed(max_tokens, "positions")
        self.type_embedding = None if types is None else embed(types, None)
        self.stack = Transformer(config, rngs=rngs)
        wide, init = config.features, config.kernel_init
        dtypes |= linear_names("embed", None)
        self.pooler = nnx.Linear(wide, wide, kernel_init=init, **dtypes, rngs=rngs) if pooler else None
        self.head = MaskedHead(config, vocabulary, rngs=rngs) if masked_head else None

    def __call__(
        self,
        tokens: jax.Array,
        *,
        types: jax.Array | None = None,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Reads tokens.

        Args:
          tokens: `(batch, tokens)` integers.
          types: Integers like the tokens; `None` for type 0 everywhere. Only where there are types.
          mask: `(batch, tokens)`; zero marks padding, or `None`.
          positions: As in `Attention`.

        Returns:
          The last stream, `(batch, tokens, features)`.

        Raises:
          TypeError: If tokens or types are no integers.
          ValueError: If there are types but no embedding of them, or more tokens than learned positions.
        """
        return self.stack(self.embedded(tokens, types, positions), mask=mask, positions=positions)

    def embedded(
        self, tokens: jax.Array, types: jax.Array | None = None, positions: jax.Array | None = None
    ) -> jax.Array:
        """What enters the stack: `(batch, tokens, features)`."""
        _check_integers("tokens", tokens)
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            known = self.position_embedding.num_embeddings
            if tokens.shape[1] > known:
                raise ValueError(f"got {tokens.shape[1]} tokens, expected at most max_tokens={known}.")
            places = jnp.arange(tokens.shape[1]) if positions is None else positions
            x = x + self.position_embedding(places.reshape(-1, tokens.shape[1]))
        if self.type_embedding is None:
            if types is not None:
                raise ValueError("types are given, but this encoder has none; make it with types=2.")
            return x
        types = jnp.zeros_like(tokens) if types is None else types
        _check_integers("types", types)
        return x + self.type_embedding(types)

    def pooled(self, y: jax.Array) -> jax.Array:
        r"""BERT's summary $\tanh(W y_0 + b)$ of a sequence, `(batch, features)`, given the last stream."""
        if self.pooler is None:
            raise ValueError("this encoder has no pooler; make it with pooler=True.")
        return jnp.tanh(self.pooler(y[:, 0]))

    def logits(self, y: jax.Array) -> jax.Array:
        """Logits of the token at each place, `(batch, tokens, vocabulary)`, given the last stream."""
        if self.head is None:
            raise ValueError("this encoder predicts no tokens; make it with masked_head=True.")
        return self.head(y, self.embedding)


def _check_integers(name: str, values: jax.Array) -> None:
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"expected integer {name}, got {values.dtype}.")
