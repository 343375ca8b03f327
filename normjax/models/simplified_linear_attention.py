r"""SLAB's simplified linear attention (Guo et al. 2024): rectified queries and keys, and a convolution of the values.

$$o_i = \frac{\sum_j \big(\phi(q_i) \cdot \phi(k_j + p_j)\big)\, v_j}
{\phi(q_i) \cdot \sum_j \phi(k_j + p_j) + \epsilon} + \mathrm{DWConv}(v)_i,\qquad \phi = \mathrm{ReLU}$$

No softmax, so sums over keys come first wherever there are more tokens than features of a head. Published around it is
`prep_batch_norm`, which folds into the linear layers at inference; attention itself has no norm.

Left out: masks, which the authors' code ignores too, and windows.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.precision import statistics_dtype


class SimplifiedLinearAttention(nnx.Module):
    """Linear attention over the positions of an image.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> attention = nj.models.SimplifiedLinearAttention(8, 2, shape=(3, 4), rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((2, 12, 8))).shape
      (2, 12, 8)

    References:
      Guo et al. 2024, [SLAB](https://arxiv.org/abs/2405.11582).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        shape: tuple[int, int],
        kernel_size: int = 5,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        """Makes parameters.

        Args:
          features: Width of a token.
          heads: Number of attention heads; divides `features`.
          shape: Height and width of the image whose positions the tokens are, row by row.
          kernel_size: Of the depthwise convolution, which all heads share.
          epsilon: Added to the denominators.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("heads", heads, 1)
        if features % heads:
            raise ValueError(f"heads={heads} does not divide features={features}; expected a divisor.")
        self.heads, self.shape, self.epsilon = heads, tuple(shape), epsilon
        self.qkv = nnx.Linear(features, 3 * features, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((shape[0] * shape[1], features)))
        width = features // heads
        size = (kernel_size, kernel_size)
        self.convolution = nnx.Conv(width, width, size, feature_group_count=width, rngs=rngs)
        self.out = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends.

        Args:
          x: Tokens, `(batch, height * width, features)`.

        Returns:
          Tokens, shaped like `x`.
        """
        if x.ndim != 3 or x.shape[1:] != self.positions.shape:
            raise ValueError(f"expected tokens (batch, {', '.join(map(str, self.positions.shape))}), got {x.shape}.")
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        q, k = jax.nn.relu(q), jax.nn.relu(k + self.positions[...].astype(k.dtype)[None])
        q, k, v = (a.reshape(*x.shape[:2], self.heads, -1) for a in (q, k, v))
        mixed = self._linear(q, k, v) + self._convolved(v)
        return self.out(mixed.reshape(x.shape))

    def _linear(self, q, k, v):
        # Rectified values of either kind add up over all tokens: at least float32, as in the authors' code.
        q, k, wide = (a.astype(statistics_dtype(a.dtype)) for a in (q, k, v))
        total = jnp.einsum("bnhd,bhd->bnh", q, k.sum(1)) + self.epsilon
        if q.shape[1] > q.shape[-1]:
            mixed = jnp.einsum("bnhd,bhde->bnhe", q, jnp.einsum("bnhd,bnhe->bhde", k, wide))
        else:
            mixed = jnp.einsum("bhnm,bmhe->bnhe", jnp.einsum("bnhd,bmhd->bhnm", q, k), wide)
        return (mixed / total[..., None]).astype(v.dtype)

    def _convolved(self, v):
        batch, length, heads, width = v.shape
        images = jnp.moveaxis(v, 2, 1).reshape(batch * heads, *self.shape, width)
        return jnp.moveaxis(self.convolution(images).reshape(batch, heads, length, width), 1, 2)
