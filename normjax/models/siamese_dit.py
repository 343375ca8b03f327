r"""The DiT block with Siamese norms (Li et al. 2026): a Post-LN and a Pre-LN stream share every sublayer.

For both sublayers $F$ (attention, feed-forward) of block $l = 0, 1, \ldots$, with $s, t, g$ made of the condition $c$:

$$u \leftarrow N_{post}(u),\qquad z = u + N_{pre}(y),\qquad r = g \odot F\big((1 + s) \odot N(z) + t\big)$$

$$u \leftarrow u + r / \sqrt{2 (l + 1)},\qquad y \leftarrow y + r$$

Both streams begin with the embedded input, and $N_{post}(u) + N_{pre}(y)$ is what the last layer gets. $N$ is without
scale and bias, as adaLN has it; the gates begin at 0, so that at first each stream keeps its own direction.

Left out: patch, time and label embeddings, and DiT's last layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import ada_modulation, layer_norm, modulate
from normjax.transform import NormTransform


class SiameseDiTBlock(nnx.Module):
    """A DiT block with adaLN-Zero on two streams.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> block = nj.models.SiameseDiTBlock(8, 2, index=0, rngs=nnx.Rngs(0))
      >>> x, c = jnp.ones((2, 5, 8)), jnp.ones((2, 8))
      >>> u, y = block(x, x, c)
      >>> u.shape, y.shape
      ((2, 5, 8), (2, 5, 8))

    References:
      Li et al. 2026, [SiameseNorm](https://arxiv.org/abs/2602.08064); Peebles and Xie 2022,
      [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        index: int,
        norm: NormTransform | None = None,
        inner_norm: NormTransform | None = None,
        mlp_features: int | None = None,
        rngs: nnx.Rngs,
    ):
        r"""Makes parameters.

        Args:
          features: Width of both streams and of the condition.
          heads: Number of attention heads; divides `features`.
          index: $l$, the number of the block from 0; it scales what the post stream gets.
          norm: $N_{pre}$ and $N_{post}$; `None` is layer normalization with epsilon $10^{-6}$.
          inner_norm: $N$; `None` is the same without scale and bias.
          mlp_features: Width of the feed-forward network; `None` is four times `features`.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("index", index)
        _checks.check_count("heads", heads, 1)
        if features % heads:
            raise ValueError(f"heads={heads} does not divide features={features}; expected a divisor.")
        norm = layer_norm(epsilon=1e-6) if norm is None else norm
        inner_norm = layer_norm(epsilon=1e-6, use_scale=False, use_bias=False) if inner_norm is None else inner_norm
        mlp_features = 4 * features if mlp_features is None else mlp_features
        self.heads, self.index = heads, index
        self.prenorm1, self.prenorm2 = (Norm(norm, features, rngs=rngs) for _ in range(2))
        self.postnorm1, self.postnorm2 = (Norm(norm, features, rngs=rngs) for _ in range(2))
        self.norm1, self.norm2 = (Norm(inner_norm, features, rngs=rngs) for _ in range(2))
        self.qkv = nnx.Linear(features, 3 * features, rngs=rngs)
        self.out = nnx.Linear(features, features, rngs=rngs)
        self.hidden = nnx.Linear(features, mlp_features, rngs=rngs)
        self.down = nnx.Linear(mlp_features, features, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(features, 6 * features, kernel_init=zeros, rngs=rngs)

    def __call__(self, u: jax.Array, y: jax.Array, condition: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps both streams.

        Args:
          u: The post stream, `(batch, length, features)`.
          y: The pre stream, shaped like `u`.
          condition: `(batch, features)`.

        Returns:
          Both streams, shaped like `u`.
        """
        if u.ndim != 3 or u.shape != y.shape:
            raise ValueError(f"got streams {u.shape} and {y.shape}; expected two (batch, length, features).")
        kernel, bias = self.modulation.kernel[...], self.modulation.bias
        chunks = ada_modulation(condition, kernel, None if bias is None else bias[...], chunks=6)
        shift1, scale1, gate1, shift2, scale2, gate2 = (chunk[:, None, :] for chunk in chunks)
        damping = (2 * (self.index + 1)) ** -0.5

        u = self.postnorm1(u)
        z = modulate(self.norm1(u + self.prenorm1(y)), scale1, shift1)
        update = gate1 * self._attend(z)
        u, y = u + damping * update, y + update

        u = self.postnorm2(u)
        z = modulate(self.norm2(u + self.prenorm2(y)), scale2, shift2)
        update = gate2 * self.down(jax.nn.gelu(self.hidden(z)))
        return u + damping * update, y + update

    def _attend(self, z):
        qkv = self.qkv(z).reshape(*z.shape[:-1], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(z.shape))
