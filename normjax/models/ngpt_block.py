r"""nGPT (Loshchilov et al. 2024): a transformer on the unit sphere, weights, stream and updates alike.

$$h \leftarrow N\big(h + \alpha \odot (N(F(h)) - h)\big),\qquad q, k \leftarrow s_{qk} \odot N(q, k)$$

$$u, v \leftarrow s_u \sqrt d \odot W_u h,\ s_v \sqrt d \odot W_v h,\qquad z = s_z \odot E_{out} h$$

Attention multiplies its scores by $\sqrt{d_{head}}$; there are no norms with statistics and no biases. Every matrix has
unit vectors along the embedding axis, from the start (`init`) and after each step: `ngpt_projection` says which.
$W_u$ and $W_v$ are one matrix in the authors' code; here they are two, so that each of the devices that share them has
both factors of its units.

The authors' released table of positions is no rotation (sines and cosines interleaved, then cut into halves); the
default of `rope` is what the paper means.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named, named_norm
from normjax.models.rope import Rope
from normjax.norms import l2_normalize, ngpt_interpolation, ngpt_norm, ngpt_scale, qk_normalize

Rotation = Callable[[jax.Array, jax.Array], jax.Array]
ROPE = Rope(interleaved=True)
# The axis of the embedding in each kernel (inputs, outputs), and in the embedding itself.
EMBEDDING_AXES = {"query": 0, "key": 0, "value": 0, "up": 0, "gate": 0, "out": 1, "down": 1, "embedding": 1, "head": 0}


def unit_init(axis: int) -> Callable[..., jax.Array]:
    """Random unit vectors along an axis."""

    def init(key, shape, dtype=jnp.float32):
        return l2_normalize(jax.random.normal(key, shape, dtype), axis=axis, epsilon=0.0)

    return init


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
        rope: Rotation | None = ROPE,
        step_init: float = 0.05,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the projections, scales and steps.

        Args:
          features: Of the stream.
          heads: Number of heads; divides the features.
          hidden: Of the feed-forward; four times the features in the paper.
          rope: Turns queries and keys, `rope(x, positions)`, or `None`.
          step_init: Of the steps of both interpolations.
          dtype: Dtype to compute in; `None` is that of input and parameters together.
          param_dtype: Dtype of the matrices; scales and steps are float32.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the heads do not divide the features.
        """
        _checks.check_count("heads", heads, 1)
        if features % heads:
            raise ValueError(f"heads={heads} does not divide features={features}; expected a divisor.")
        self.heads, self.rope = heads, rope

        def linear(name, inputs, outputs, *names):
            options = {"kernel_init": unit_init(EMBEDDING_AXES[name]), "dtype": dtype, "param_dtype": param_dtype}
            return nnx.Linear(inputs, outputs, use_bias=False, **options, **linear_names(*names), rngs=rngs)

        reads = lambda name: linear(name, features, features, "embed", "heads")  # noqa: E731
        self.query, self.key, self.value = reads("query"), reads("key"), reads("value")
        self.out = linear("out", features, features, "heads", "embed")
        self.up, self.gate = (linear(name, features, hidden, "embed", "mlp") for name in ("up", "gate"))
        self.down = linear("down", hidden, features, "mlp", "embed")
        scaled = ngpt_norm(feature_axes=(-2, -1), base_scale=features**-0.5)
        # One scale for queries and keys.
        self.qk_norm = named_norm(scaled, (1, 1, heads, features // heads), rngs, ("heads", None))
        self.up_scale, self.gate_scale = (nnx.Param(jnp.ones((hidden,)), **named("mlp")) for _ in range(2))
        step = ngpt_interpolation(initial=step_init)
        self.attention_step, self.ffn_step = (named_norm(step, features, rngs) for _ in range(2))

    def __call__(self, h: jax.Array, *, positions: jax.Array | None = None) -> jax.Array:
        """The block's step.

        Args:
          h: Unit vectors, `(batch, tokens, features)`.
          positions: `(tokens,)` or `(batch, tokens)` integers for the rotation; `None` counts from 0.

        Returns:
          Unit vectors like `h`.
        """
        h = self.attention_step(h, update=self._attend(h, positions))
        u, v = self._scaled(self.up(h), self.up_scale), self._scaled(self.gate(h), self.gate_scale)
        return self.ffn_step(h, update=self.down(u * jax.nn.silu(v)))

    def _scaled(self, inner: jax.Array, stored: nnx.Param) -> jax.Array:
        scale = ngpt_scale(stored[...], initial=1.0, base_scale=1.0) * self.up.in_features**0.5
        return inner * scale.astype(inner.dtype).reshape(1, 1, -1)

    def _attend(self, h: jax.Array, positions: jax.Array | None) -> jax.Array:
        split = lambda x: x.reshape(*x.shape[:-1], self.heads, -1)  # noqa: E731
        q, k, v = (split(project(h)) for project in (self.query, self.key, self.value))
        positions = jnp.arange(h.shape[1]) if positions is None else positions
        rope = self.rope
        rotate = None if rope is None else lambda x: rope(x, positions)
        q, k, v = qk_normalize(
            q, k, v, query=self.qk_norm, key=self.qk_norm, rotate=rotate, order="rotate_then_normalize"
        )
        mixed = jax.nn.dot_product_attention(q, k, v, scale=q.shape[-1] ** 0.5, is_causal=True)
        return self.out(mixed.reshape(h.shape))
