r"""Polarized self-attention (Liu et al. 2021): one gate for each channel and one for each position.

$$g_{ch} = \sigma\Big(W_u \sum_i \operatorname{softmax}_i(W_q x)\, (W_v x)_i\Big)$$

$$g_{sp} = \sigma(\operatorname{softmax}_i(\bar q \cdot \theta_i))\ \text{(parallel)},\qquad
g_{sp} = \sigma(\bar q \cdot \operatorname{softmax}_i \theta_i)\ \text{(sequential)}$$

with $\bar q$ the mean over positions of $W_q' x$, and $\theta = W_v' x$. The parallel form returns $x \odot g_{ch} + x
\odot g_{sp}$, the sequential one gates by channel and then by position. As released, the sequential form alone has a
norm, between the two layers of its channel gate.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import layer_norm
from normjax.transform import NormTransform


class ParallelPolarizedAttention(nnx.Module):
    """Channel and spatial gates side by side; no norm.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> attention = nj.models.ParallelPolarizedAttention(8, rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((2, 3, 4, 8))).shape
      (2, 3, 4, 8)

    References:
      Liu et al. 2021, [Polarized Self-Attention](https://arxiv.org/abs/2107.00782).
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """Makes parameters.

        Args:
          features: Channels of the input, an even number.
          rngs: Random streams; `params` is used.
        """
        self.queries = _Queries(features, rngs)
        self.up = _pointwise(features // 2, features, rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates an image.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The gated image, shaped like `x`.
        """
        _check_image(x)
        by_channel = x * jax.nn.sigmoid(self.up(self.queries.pooled(x)))
        query, values = self.queries.spatial(x)
        scores = jax.nn.softmax((query * values).sum(-1, keepdims=True), axis=(1, 2))
        return by_channel + x * jax.nn.sigmoid(scores)


class SequentialPolarizedAttention(nnx.Module):
    """A channel gate through a normalized bottleneck, then a spatial gate.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> attention = nj.models.SequentialPolarizedAttention(16, norm=nj.rms_norm(), rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((2, 3, 4, 16))).shape
      (2, 3, 4, 16)

    References:
      Liu et al. 2021, [Polarized Self-Attention](https://arxiv.org/abs/2107.00782).
    """

    def __init__(self, features: int, *, norm: NormTransform | None = None, ratio: int = 4, rngs: nnx.Rngs):
        r"""Makes parameters.

        Args:
          features: Channels of the input, a multiple of twice the ratio.
          norm: The norm in the bottleneck; `None` is layer normalization with epsilon $10^{-5}$.
          ratio: Half the features over those of the bottleneck.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("ratio", ratio, 1)
        if features % (2 * ratio):
            raise ValueError(f"features={features} is not a multiple of 2 * ratio = {2 * ratio}; expected one.")
        inner = features // 2 // ratio
        self.queries = _Queries(features, rngs)
        self.down = _pointwise(features // 2, inner, rngs)
        self.norm = Norm(layer_norm(epsilon=1e-5) if norm is None else norm, inner, rngs=rngs)
        self.up = _pointwise(inner, features, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates an image.

        Args:
          x: `(batch, height, width, features)`.

        Returns:
          The gated image, shaped like `x`.
        """
        _check_image(x)
        bottleneck = jax.nn.relu(self.norm(self.down(self.queries.pooled(x))))
        x = x * jax.nn.sigmoid(self.up(bottleneck))
        query, values = self.queries.spatial(x)
        scores = (query * jax.nn.softmax(values, axis=(1, 2))).sum(-1, keepdims=True)
        return x * jax.nn.sigmoid(scores)


class _Queries(nnx.Module):
    """The 1x1 convolutions of both gates, without bias, and what they pool."""

    def __init__(self, features, rngs):
        if features % 2:
            raise ValueError(f"expected an even number of features, got features={features}.")
        half = features // 2
        self.channel_query = _pointwise(features, 1, rngs, use_bias=False)
        self.channel_value, self.spatial_query, self.spatial_value = (
            _pointwise(features, half, rngs, use_bias=False) for _ in range(3)
        )

    def pooled(self, x):
        """The values averaged by the softmax of the query over all positions, `(batch, 1, 1, features / 2)`."""
        weights = jax.nn.softmax(self.channel_query(x), axis=(1, 2))
        return (weights * self.channel_value(x)).sum((1, 2), keepdims=True)

    def spatial(self, x):
        """The mean query `(batch, 1, 1, features / 2)` and the values of all positions."""
        return jnp.mean(self.spatial_query(x), (1, 2), keepdims=True), self.spatial_value(x)


def _pointwise(features, out_features, rngs, use_bias=True):
    init = nnx.initializers.kaiming_normal()
    return nnx.Linear(features, out_features, use_bias=use_bias, kernel_init=init, rngs=rngs)


def _check_image(x):
    if x.ndim != 4:
        raise ValueError(f"expected an image (batch, height, width, features), got shape {x.shape}.")
