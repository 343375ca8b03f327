r"""Efficient local attention (Xu and Wan 2024): a gate for each row and each column, with group normalization.

$$y_{hw} = x_{hw} \odot \sigma(N(c * \bar x_{h\cdot}))\, \odot\, \sigma(N(c * \bar x_{\cdot w}))$$

$\bar x_{h\cdot}$ and $\bar x_{\cdot w}$ are means over columns and over rows, $c$ a convolution along the strip. Both
strips share convolution and norm. It is coordinate attention with its batch normalization replaced; the authors
published no code, and this reading is that of several public ports.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.nnx import Norm
from normjax.norms import group_norm
from normjax.transform import NormTransform


class EfficientLocalAttention(nnx.Module):
    """Gates an image by its rows and its columns.

    The published variants are, with `kernel_size`, `conv_groups` and the groups of the norm: T 5, all, 32; B 7, all,
    16; S 5, an eighth, 16; L 7, an eighth, 16.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> attention = nj.models.EfficientLocalAttention(32, rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((2, 5, 6, 32))).shape
      (2, 5, 6, 32)

    References:
      Xu and Wan 2024, [ELA](https://arxiv.org/abs/2403.01123).
    """

    def __init__(
        self,
        features: int,
        *,
        kernel_size: int = 7,
        conv_groups: int | None = None,
        norm: NormTransform | None = None,
        rngs: nnx.Rngs,
    ):
        r"""Makes parameters.

        Args:
          features: Channels of the input.
          kernel_size: Of the convolution along the strips.
          conv_groups: Its groups; `None` is one for each channel.
          norm: The norm of a strip `(batch, length, features)`; `None` is group normalization with 16 groups and
            epsilon $10^{-5}$.
          rngs: Random streams; `params` is used.
        """
        conv_groups = features if conv_groups is None else conv_groups
        if conv_groups < 1 or features % conv_groups:
            raise ValueError(f"conv_groups={conv_groups} does not divide features={features}; expected a divisor.")
        self.convolution = nnx.Conv(
            features, features, (kernel_size,), feature_group_count=conv_groups, use_bias=False, rngs=rngs
        )
        self.norm = Norm(group_norm(num_groups=16, epsilon=1e-5) if norm is None else norm, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates an image.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The gated image, shaped like `x`.
        """
        if x.ndim != 4:
            raise ValueError(f"expected an image (batch, height, width, features), got shape {x.shape}.")
        rows, columns = (self._gate(jnp.mean(x, axis)) for axis in (2, 1))
        return x * rows[:, :, None, :] * columns[:, None, :, :]

    def _gate(self, strip):
        return jax.nn.sigmoid(self.norm(self.convolution(strip)))
