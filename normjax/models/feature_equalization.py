r"""MEDFE's feature equalization (Liu et al. 2020): channel gates, then averages over space and over similar neighbours.

With $z = x \odot \mathrm{SE}(x)$ and $i$, $j$ positions,

$$s_i = \sum_j G_{ij}\, z_j,\qquad r_i = \sum_{j \in 3 \times 3} \operatorname{softmax}_j\Big(
\tfrac{1}{C}\, \sigma(z_i) \cdot \sigma(z_j)\Big)\, z_j,\qquad y = \mathrm{LeakyReLU}(N(W [s, r]))$$

$G$ is a Gaussian whose rows sum to one, and beyond the border both $\sigma(z_j)$ and $z_j$ are 0. The averages equalize
neighbours, not statistics; the norm is the one after fusing.

The published code reshapes its averages of shape (positions, channels) straight to (channels, height, width), which
puts every value at another position and channel. `scrambled=True` repeats that, for weights trained so.

Left out: the encoder and decoder around it, and partial convolutions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.nnx import Norm
from normjax.norms import instance_norm
from normjax.transform import NormTransform


class FeatureEqualization(nnx.Module):
    """Equalizes the features of an image.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> block = nj.models.FeatureEqualization(16, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((2, 5, 6, 16))).shape
      (2, 5, 6, 16)

    References:
      Liu et al. 2020,
      [Rethinking Image Inpainting via a Mutual Encoder-Decoder](https://arxiv.org/abs/2007.06929).
    """

    def __init__(
        self,
        features: int,
        *,
        norm: NormTransform | None = None,
        reduction: int = 16,
        sigma: float = 1.5,
        scrambled: bool = False,
        rngs: nnx.Rngs,
    ):
        r"""Makes parameters.

        Args:
          features: Channels of input and output.
          norm: The norm after fusing; `None` is instance normalization without scale and bias, epsilon $10^{-5}$.
          reduction: Channels over those inside the channel gate.
          sigma: Width of the Gaussian, in positions.
          scrambled: Whether the averages are reshaped as in the published code.
          rngs: Random streams; `params` is used.
        """
        if not 1 <= reduction <= features:
            raise ValueError(f"reduction={reduction} leaves no channel; expected 1 to features={features}.")
        if not sigma > 0:
            raise ValueError(f"expected sigma > 0, got sigma={sigma!r}.")
        self.sigma, self.scrambled = sigma, scrambled
        self.squeeze = nnx.Linear(features, features // reduction, rngs=rngs)
        self.excite = nnx.Linear(features // reduction, features, rngs=rngs)
        self.fuse = nnx.Linear(2 * features, features, use_bias=False, rngs=rngs)
        norm = instance_norm(epsilon=1e-5, use_scale=False, use_bias=False) if norm is None else norm
        self.norm = Norm(norm, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates, averages and fuses.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The equalized image, shaped like `x`.
        """
        return jax.nn.leaky_relu(self.norm(self.fuse(self.averages(x))), 0.2)

    def averages(self, x: jax.Array) -> jax.Array:
        """The two averages that are fused.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The average over space and that over similar neighbours, `(batch, height, width, 2 * features)`.
        """
        if x.ndim != 4:
            raise ValueError(f"expected an image (batch, height, width, features), got shape {x.shape}.")
        pooled = jax.nn.relu(self.squeeze(jnp.mean(x, (1, 2), keepdims=True)))
        x = x * jax.nn.sigmoid(self.excite(pooled))
        parts = (_blurred(x, self.sigma), _similar(x))
        return jnp.concatenate([_scrambled(a) if self.scrambled else a for a in parts], axis=-1)


def _blurred(x, sigma):
    """The Gaussian average; normalized rows of a product are products of normalized rows, so it is separable."""
    rows, columns = (jnp.asarray(_gaussian(length, sigma), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)


def _gaussian(length, sigma):
    offsets = np.arange(length)[:, None] - np.arange(length)[None]
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum(-1, keepdims=True)


def _similar(x):
    """The average over each 3x3 neighbourhood, weighted by how alike the squashed features are."""
    squashed = jax.nn.sigmoid(x)
    similarity = jnp.mean(squashed[..., None, :] * _neighbours(squashed), axis=-1, keepdims=True)
    return (jax.nn.softmax(similarity, axis=-2) * _neighbours(x)).sum(-2)


def _neighbours(x):
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-2)


def _scrambled(x):
    batch, height, width, features = x.shape
    return jnp.moveaxis(x.reshape(batch, features, height, width), 1, -1)
