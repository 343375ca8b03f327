"""nGPT as a language model, and which of its matrices stay on the sphere."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named
from normjax.models._depth import carries, equal_blocks
from normjax.models.ngpt_block import EMBEDDING_AXES, ROPE, NGPTBlock, Rotation, unit_init
from normjax.norms import ngpt_scale


def ngpt_projection(params: Any) -> dict[str, Any]:
    """What `project_weights` needs to keep nGPT's matrices on the sphere, last in the chain.

    Args:
      params: Parameters of an `NGPT` or an `NGPTBlock`: `nnx.state(model, nnx.Param)`, or as an optimizer gets them.

    Returns:
      `radius`, `axes` and `mask`, by path: unit vectors along the embedding axis of every matrix, nothing else.

    Raises:
      ValueError: If there is no such matrix.

    Example:
      >>> import normjax as nj, optax
      >>> from flax import nnx
      >>> options = {"layers": 1, "features": 8, "heads": 2, "hidden": 16, "vocabulary": 5}
      >>> model = nnx.eval_shape(lambda: nj.models.NGPT(**options, rngs=nnx.Rngs(0)))
      >>> projection = nj.models.ngpt_projection(nnx.state(model, nnx.Param))
      >>> projection["axes"]["blocks/0/query/kernel"], projection["axes"]["blocks/0/out/kernel"]
      (0, 1)
      >>> tx = optax.chain(optax.adam(1e-2), nj.project_weights(**projection))

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    is_box = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    ranks = {name: jnp.ndim(jax.tree.leaves(leaf)[0]) for name, (_, leaf) in zip(names, leaves, strict=True)}
    matrices = {n: n.split("/")[-2] for n in names if n.endswith(("/kernel", "embedding/embedding"))}
    if not matrices or not set(matrices.values()) <= set(EMBEDDING_AXES):
        raise ValueError(
            "expected the parameters of an NGPT or an NGPTBlock, with matrices named "
            f"{', '.join(sorted(EMBEDDING_AXES))}; got {names}."
        )
    # Stacked blocks have an axis before those of a matrix.
    axes = {name: EMBEDDING_AXES[kind] + ranks[name] - 2 for name, kind in matrices.items()}
    return {"radius": 1.0, "axes": axes, "mask": {name: name in axes for name in names}}


class NGPT(nnx.Module):
    """A language model on the sphere: unit embeddings, blocks, a head with a scale for each token.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> model = nj.models.NGPT(layers=1, features=8, heads=2, hidden=32, vocabulary=11, rngs=nnx.Rngs(0))
      >>> model(jnp.array([[1, 2, 3]])).shape
      (1, 3, 11)

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """

    def __init__(
        self,
        *,
        layers: int,
        features: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        rope: Rotation | None = ROPE,
        step_init: float = 0.05,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scan: bool = False,
        remat: bool = False,
        stream_sharding: jax.sharding.Sharding | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes `embedding`, `blocks`, `head` and `logit_scale`.

        Args:
          layers: Number of blocks.
          vocabulary: Number of tokens.
          features, heads, hidden, rope, step_init, dtype, param_dtype: As in `NGPTBlock`.
          scan: Whether the blocks are one compiled loop with stacked parameters, `blocks[0]`.
          remat: Whether the backward pass computes each block again instead of keeping what is inside.
          stream_sharding: As in `TransformerConfig`.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("layers", layers, 1)
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        init = unit_init(EMBEDDING_AXES["embedding"])
        options = {"embedding_init": init, "embedding_metadata": named("vocab", "embed"), **dtypes}
        self.embedding = nnx.Embed(vocabulary, features, **options, rngs=rngs)
        self.layers, self.scan, self.remat, self.stream_sharding = layers, scan, remat, stream_sharding
        block: dict[str, Any] = {"rope": rope, "step_init": step_init, **dtypes}
        make = lambda rngs: NGPTBlock(features, heads, hidden, **block, rngs=rngs)  # noqa: E731
        self.blocks = equal_blocks(make, layers, rngs, scan)
        options = {"kernel_init": unit_init(EMBEDDING_AXES["head"]), **linear_names("embed", "vocab"), **dtypes}
        self.head = nnx.Linear(features, vocabulary, use_bias=False, **options, rngs=rngs)
        # With its dtype: a number alone is weakly typed, and a step that makes it a strong one would be compiled twice.
        self.logit_scale = nnx.Param(jnp.full((vocabulary,), features**-0.5, float), **named("vocab"))

    def __call__(self, tokens: jax.Array, *, positions: jax.Array | None = None) -> jax.Array:
        """Reads tokens and predicts the one after each.

        Args:
          tokens: `(batch, tokens)` integers.
          positions: As in `NGPTBlock`.

        Returns:
          Logits, `(batch, tokens, vocabulary)`.

        Raises:
          TypeError: If the tokens are no integers.
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"expected integer tokens, got {tokens.dtype}.")
        lengths = (self.layers,) if self.scan else (0,) * self.layers
        how: dict[str, Any] = {"remat": self.remat, "sharding": self.stream_sharding}
        *_, h = carries(self.blocks, lengths, self.embedding(tokens), {"positions": positions}, **how)
        logits = self.head(h)
        scale = ngpt_scale(self.logit_scale[...], initial=1.0, base_scale=h.shape[-1] ** -0.5)
        return logits * scale.astype(logits.dtype).reshape(1, 1, -1)
