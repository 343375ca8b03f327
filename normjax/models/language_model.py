"""A language model: an embedding, a stack, and a head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named
from normjax.models.transformer import Transformer, TransformerConfig

_EMBEDDING_INIT = nnx.initializers.normal(0.02)


class LanguageModel(nnx.Module):
    r"""Logits of the next token: $W_h\, T(s E_{t} + P)$.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.TransformerConfig(
      ...     layers=1, features=8, heads=2, hidden=16, placement=nj.placements.pre(nj.rms_norm())
      ... )
      >>> model = nj.models.LanguageModel(config, vocabulary=11, rngs=nnx.Rngs(0))
      >>> model(jnp.array([[1, 2, 3]])).shape
      (1, 3, 11)
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        vocabulary: int,
        tied: bool = True,
        head_bias: bool = False,
        max_tokens: int | None = None,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        embedding_init: Callable[..., jax.Array] = _EMBEDDING_INIT,
        rngs: nnx.Rngs,
    ):
        """Makes `embedding`, `position_embedding` and `head` where they are asked for, and `stack`.

        Args:
          config: The stack.
          vocabulary: Number of tokens.
          tied: Whether the head is the embedding's transpose.
          head_bias: Whether an untied head has a bias, as one has into which the final norm was folded.
          max_tokens: Length of a learned position embedding (GPT-2); `None` for none.
          embedding_scale: Multiplies the embedding (Gemma: the root of the features).
          logit_scale: Multiplies the logits (Cohere).
          logit_softcap: Logits become `softcap * tanh(logits / softcap)` (Gemma 2), or `None`.
          embedding_init: Initializer of the embeddings.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the vocabulary is empty or a tied head is to have a bias.
        """
        _checks.check_count("vocabulary", vocabulary, 1)
        if tied and head_bias:
            raise ValueError("head_bias=True needs tied=False: the head is then a layer of its own.")
        options = {"embedding_init": embedding_init, "param_dtype": config.param_dtype, "dtype": config.dtype}
        embed = lambda count, name: nnx.Embed(  # noqa: E731
            count, config.features, **options, embedding_metadata=named(name, "embed"), rngs=rngs
        )
        self.embedding = embed(vocabulary, "vocab")
        self.position_embedding = None if max_tokens is None else embed(max_tokens, "positions")
        self.stack = Transformer(config, rngs=rngs)
        dtypes = {"param_dtype": config.param_dtype, "dtype": config.dtype, **linear_names("embed", "vocab")}
        self.head = None if tied else nnx.Linear(config.features, vocabulary, use_bias=head_bias, **dtypes, rngs=rngs)
        self.embedding_scale, self.logit_scale, self.logit_softcap = embedding_scale, logit_scale, logit_softcap

    def __call__(
        self, tokens: jax.Array, *, mask: jax.Array | None = None, positions: jax.Array | None = None
    ) -> jax.Array:
        """Reads tokens and predicts the one after each.

        Args:
          tokens: `(batch, tokens)` integers.
          mask: `(batch, tokens)`; zero marks padding, or `None`.
          positions: As in `Attention`.

        Returns:
          Logits, `(batch, tokens, vocabulary)`.

        Raises:
          TypeError: If the tokens are no integers.
          ValueError: If there are more of them than learned positions.
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"expected integer tokens, got {tokens.dtype}.")
        y = self.stack(self.embedded(tokens, positions), mask=mask, positions=positions)
        logits = self.embedding.attend(y) if self.head is None else self.head(y)
        logits = logits if self.logit_scale == 1 else logits * jnp.asarray(self.logit_scale, logits.dtype)
        cap = self.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def embedded(self, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """What enters the stack."""
        x = self.embedding(tokens)
        x = x if self.embedding_scale == 1 else x * jnp.asarray(self.embedding_scale, x.dtype)
        if self.position_embedding is None:
            return x
        known, length = self.position_embedding.num_embeddings, tokens.shape[1]
        if length > known:
            raise ValueError(f"got {length} tokens, expected at most max_tokens={known}.")
        places = jnp.arange(length) if positions is None else positions
        return x + self.position_embedding(places.reshape(-1, length))
