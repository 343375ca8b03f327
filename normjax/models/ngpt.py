r"""nGPT (Loshchilov et al. 2024): a transformer on the unit sphere, weights, stream and updates alike.

$$h \leftarrow N\big(h + \alpha \odot (N(F(h)) - h)\big),\qquad q, k \leftarrow s_{qk} \odot N(q, k),\qquad
u, v \leftarrow s_{uv} \sqrt d \odot W_{uv} h,\qquad z = s_z \odot E_{out} h$$

Attention multiplies its scores by $\sqrt{d_{head}}$; there are no norms with statistics and no biases. Every matrix has
unit vectors along the embedding axis, from the start (`init`) and after each step: `ngpt_projection` says which.

The authors' released table of positions is no rotation (sines and cosines interleaved, then cut into halves); the
default of `rope` is what the paper means.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models.rope import Rope
from normjax.nnx import Norm
from normjax.norms import l2_normalize, ngpt_interpolation, ngpt_norm, ngpt_scale, qk_normalize

Rotation = Callable[[jax.Array, jax.Array], jax.Array]
_ROPE = Rope(interleaved=True)
# The axis of the embedding in each kernel (inputs, outputs), and in the embedding itself.
_AXES = {"query": 0, "key": 0, "value": 0, "hidden": 0, "out": 1, "down": 1, "embedding": 1, "head": 0}


def _unit(axis: int) -> Callable[..., jax.Array]:
    """Random unit vectors along an axis."""

    def init(key, shape, dtype=jnp.float32):
        return l2_normalize(jax.random.normal(key, shape, dtype), axis=axis, epsilon=0.0)

    return init


def ngpt_projection(params: Any) -> dict[str, Any]:
    """What `project_weights` needs to keep nGPT's matrices on the sphere, last in the chain.

    Args:
      params: Parameters of an `NGPT` or an `NGPTBlock`: `nnx.state(model, nnx.Param)`, or as an optimizer gets them.

    Returns:
      `radius`, `axes` and `mask`, by path: unit vectors along the embedding axis of every matrix, nothing else.

    Raises:
      ValueError: If there is no such matrix.

    Example:
      >>> import jax.numpy as jnp, normjax as nj, optax
      >>> from flax import nnx
      >>> model = nj.models.NGPT(layers=1, features=8, heads=2, hidden=16, vocabulary=5, rngs=nnx.Rngs(0))
      >>> projection = nj.models.ngpt_projection(nnx.state(model, nnx.Param))
      >>> projection["axes"]["blocks/0/query/kernel"], projection["axes"]["blocks/0/out/kernel"]
      (0, 1)
      >>> tx = optax.chain(optax.adam(1e-2), nj.project_weights(**projection))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> updates = optimizer.update(model, nnx.grad(lambda m: m(jnp.array([[1, 2, 3]])).sum())(model))
      >>> bool(jnp.allclose(jnp.linalg.norm(model.blocks[0].query.kernel[...], axis=0), 1.0, atol=1e-5))
      True

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    is_box = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    matrices = {n: n.split("/")[-2] for n in names if n.endswith(("/kernel", "embedding/embedding"))}
    if not matrices or not set(matrices.values()) <= set(_AXES):
        raise ValueError(
            f"expected the parameters of an NGPT or an NGPTBlock, with matrices named {sorted(_AXES)}, got {names}."
        )
    axes = {name: _AXES[kind] for name, kind in matrices.items()}
    return {"radius": 1.0, "axes": axes, "mask": {name: name in axes for name in names}}


class NGPTBlock(nnx.Module):
    """Causal attention and a gated feed-forward, each an interpolation on the sphere.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> block = nj.models.NGPTBlock(8, 2, 16, rngs=nnx.Rngs(0))
      >>> h = block(nj.l2_normalize(jax.random.normal(jax.random.key(0), (1, 3, 8))))
      >>> bool(jnp.allclose(jnp.linalg.norm(h, axis=-1), 1.0, atol=1e-5))
      True

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int,
        *,
        rope: Rotation | None = _ROPE,
        step_init: float = 0.05,
        rngs: nnx.Rngs,
    ):
        """Makes the projections, scales and steps.

        Args:
          features: Of the stream.
          heads: Number of heads; divides the features.
          hidden: Of the feed-forward; four times the features in the paper.
          rope: Turns queries and keys, `rope(x, positions)`, or `None`.
          step_init: Of the steps of both interpolations.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the heads do not divide the features.
        """
        _checks.check_count("heads", heads, 1)
        if features % heads:
            raise ValueError(f"heads={heads} does not divide features={features}; expected a divisor.")
        self.heads, self.rope = heads, rope

        def linear(name, inputs, outputs):
            return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=_unit(_AXES[name]), rngs=rngs)

        self.query, self.key, self.value = (linear(n, features, features) for n in ("query", "key", "value"))
        self.out = linear("out", features, features)
        self.hidden, self.down = linear("hidden", features, 2 * hidden), linear("down", hidden, features)
        scaled = ngpt_norm(feature_axes=(-2, -1), base_scale=features**-0.5)
        # One scale for queries and keys.
        self.qk_norm = Norm(scaled, (1, 1, heads, features // heads), rngs=rngs)
        self.hidden_scale = nnx.Param(jnp.ones((2 * hidden,)))
        step, context = ngpt_interpolation(initial=step_init), {"update": jax.ShapeDtypeStruct((), jnp.float32)}
        self.attention_step, self.ffn_step = (Norm(step, features, rngs=rngs, **context) for _ in range(2))

    def __call__(self, h: jax.Array, *, positions: jax.Array | None = None) -> jax.Array:
        """The block's step.

        Args:
          h: Unit vectors, `(batch, tokens, features)`.
          positions: `(tokens,)` or `(batch, tokens)` integers for the rotation; `None` counts from 0.

        Returns:
          Unit vectors like `h`.
        """
        h = self.attention_step(h, update=self._attend(h, positions))
        scale = ngpt_scale(self.hidden_scale[...], initial=1.0, base_scale=1.0) * h.shape[-1] ** 0.5
        inner = self.hidden(h)
        u, gate = jnp.split(inner * scale.astype(inner.dtype).reshape(1, 1, -1), 2, -1)
        return self.ffn_step(h, update=self.down(u * jax.nn.silu(gate)))

    def _attend(self, h: jax.Array, positions: jax.Array | None) -> jax.Array:
        split = lambda x: x.reshape(*x.shape[:-1], self.heads, -1)  # noqa: E731
        q, k, v = (split(project(h)) for project in (self.query, self.key, self.value))
        positions = jnp.arange(h.shape[1]) if positions is None else positions
        rotate = None if self.rope is None else lambda x: self.rope(x, positions)
        q, k, v = qk_normalize(
            q, k, v, query=self.qk_norm, key=self.qk_norm, rotate=rotate, order="rotate_then_normalize"
        )
        mixed = jax.nn.dot_product_attention(q, k, v, scale=q.shape[-1] ** 0.5, is_causal=True)
        return self.out(mixed.reshape(h.shape))


class NGPT(nnx.Module):
    """A language model on the sphere: unit embeddings, blocks, a head with a scale for each token.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> model = nj.models.NGPT(layers=2, features=8, heads=2, hidden=32, vocabulary=11, rngs=nnx.Rngs(0))
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
        rope: Rotation | None = _ROPE,
        step_init: float = 0.05,
        rngs: nnx.Rngs,
    ):
        """Makes `embedding`, `blocks`, `head` and `logit_scale`.

        Args:
          layers: Number of blocks.
          vocabulary: Number of tokens.
          features, heads, hidden, rope, step_init: As in `NGPTBlock`.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("layers", layers, 1)
        self.embedding = nnx.Embed(vocabulary, features, embedding_init=_unit(_AXES["embedding"]), rngs=rngs)
        block = {"rope": rope, "step_init": step_init}
        self.blocks = nnx.List([NGPTBlock(features, heads, hidden, **block, rngs=rngs) for _ in range(layers)])
        self.head = nnx.Linear(features, vocabulary, use_bias=False, kernel_init=_unit(_AXES["head"]), rngs=rngs)
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
