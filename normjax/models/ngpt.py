"""nGPT as a language model, and which of its matrices stay on the sphere."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
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
    matrices = {n: n.split("/")[-2] for n in names if n.endswith(("/kernel", "embedding/embedding"))}
    if not matrices or not set(matrices.values()) <= set(EMBEDDING_AXES):
        raise ValueError(
            "expected the parameters of an NGPT or an NGPTBlock, with matrices named "
            f"{', '.join(sorted(EMBEDDING_AXES))}; got {names}."
        )
    axes = {name: EMBEDDING_AXES[kind] for name, kind in matrices.items()}
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
        rngs: nnx.Rngs,
    ):
        """Makes `embedding`, `blocks`, `head` and `logit_scale`.

        Args:
          layers: Number of blocks.
          vocabulary: Number of tokens.
          features, heads, hidden, rope, step_init, dtype, param_dtype: As in `NGPTBlock`.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("layers", layers, 1)
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        init = unit_init(EMBEDDING_AXES["embedding"])
        self.embedding = nnx.Embed(vocabulary, features, embedding_init=init, **dtypes, rngs=rngs)
        block: dict[str, Any] = {"rope": rope, "step_init": step_init, **dtypes}
        self.blocks = nnx.List([NGPTBlock(features, heads, hidden, **block, rngs=rngs) for _ in range(layers)])
        init = unit_init(EMBEDDING_AXES["head"])
        self.head = nnx.Linear(features, vocabulary, use_bias=False, kernel_init=init, **dtypes, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((vocabulary,), features**-0.5))

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
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h, positions=positions)
        logits = self.head(h)
        scale = ngpt_scale(self.logit_scale[...], initial=1.0, base_scale=h.shape[-1] ** -0.5)
        return logits * scale.astype(logits.dtype).reshape(1, 1, -1)
