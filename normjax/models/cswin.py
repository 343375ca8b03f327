r"""The CSWin block (Dong et al. 2022): attention in a cross of stripes, positions from a convolution of the values.

$$h = x + W_O\,[a^{|}, a^{-}],\qquad y = h + W_2\,\mathrm{GELU}(W_1 N_2(h)),\qquad
a = \operatorname{softmax}\!\left(\tfrac{1}{\sqrt d} q k^\top\right) v + \mathrm{DWConv}_{3 \times 3}(v)$$

where $q, k, v$ are made of $N_1(x)$; one half of the channels and heads attends within vertical stripes, the other one
within horizontal stripes, so that each position sees a cross. The convolution (LePE) is zero-padded at the borders of a
stripe. Norms are layer normalization in the paper; SLAB puts `prep_batch_norm` in their place.

Left out: patch embedding and merging between stages, stochastic depth, and the undivided attention of the last stage.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import layer_norm
from normjax.transform import NormTransform


class CSWinBlock(nnx.Module):
    """A residual cross-shaped attention and a residual feed-forward network, a norm before each.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> block = nj.models.CSWinBlock(8, 2, stripe=2, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((2, 4, 6, 8))).shape
      (2, 4, 6, 8)

    References:
      Dong et al. 2022, [CSWin Transformer](https://arxiv.org/abs/2107.00652).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        stripe: int,
        norm: NormTransform | None = None,
        mlp_ratio: int = 4,
        rngs: nnx.Rngs,
    ):
        """Makes parameters.

        Args:
          features: Channels of the input.
          heads: Number of attention heads, half of them for each direction; even, and divides `features`.
          stripe: Width of a stripe; divides height and width of the input.
          norm: Both norms; `None` is layer normalization.
          mlp_ratio: Width of the feed-forward network over `features`.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("heads", heads, 2)
        _checks.check_count("stripe", stripe, 1)
        if heads % 2 or features % heads:
            raise ValueError(f"got features={features} and heads={heads}; expected an even divisor of the features.")
        norm = layer_norm(epsilon=1e-5) if norm is None else norm
        self.heads, self.stripe, half = heads, stripe, features // 2
        self.norm1, self.norm2 = (Norm(norm, features, rngs=rngs) for _ in range(2))
        self.qkv = nnx.Linear(features, 3 * features, rngs=rngs)
        self.vertical_positions, self.horizontal_positions = (
            nnx.Conv(half, half, (3, 3), feature_group_count=half, rngs=rngs) for _ in range(2)
        )
        self.out = nnx.Linear(features, features, rngs=rngs)
        self.hidden = nnx.Linear(features, mlp_ratio * features, rngs=rngs)
        self.down = nnx.Linear(mlp_ratio * features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps an image to an image.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The image, shaped like `x`.
        """
        if x.ndim != 4 or x.shape[1] % self.stripe or x.shape[2] % self.stripe:
            raise ValueError(
                f"expected an image (batch, height, width, features) that stripe={self.stripe} divides, got {x.shape}."
            )
        x = x + self.attend(self.norm1(x))
        return x + self.down(jax.nn.gelu(self.hidden(self.norm2(x)), approximate=False))

    def attend(self, x: jax.Array) -> jax.Array:
        """Cross-shaped attention alone.

        Args:
          x: The normalized image, `(batch, height, width, features)`.

        Returns:
          What is added to the residual, shaped like `x`.
        """
        _, height, width, features = x.shape
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, features)
        vertical, horizontal = jnp.split(qkv, 2, axis=-1)
        vertical = self._within(vertical, (height, self.stripe), self.vertical_positions)
        horizontal = self._within(horizontal, (self.stripe, width), self.horizontal_positions)
        return self.out(jnp.concatenate([vertical, horizontal], axis=-1))

    def _within(self, qkv, window, positions):
        batch, height, width, _, features = qkv.shape
        rows, columns = height // window[0], width // window[1]
        cut = qkv.reshape(batch, rows, window[0], columns, window[1], 3, features)
        q, k, v = jnp.moveaxis(cut, (5, 3), (0, 3)).reshape(3, batch * rows * columns, *window, features)
        split = (q.shape[0], window[0] * window[1], self.heads // 2, -1)
        attended = jax.nn.dot_product_attention(q.reshape(split), k.reshape(split), v.reshape(split))
        mixed = attended.reshape(v.shape) + positions(v)
        mixed = jnp.swapaxes(mixed.reshape(batch, rows, columns, *window, features), 2, 3)
        return mixed.reshape(batch, height, width, features)
