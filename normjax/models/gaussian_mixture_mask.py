r"""The Gaussian mixture mask of attention scores (Li and Zhang 2023): nearby patches count more, learned by head.

$$s_{ij} \leftarrow s_{ij} \sum_k \alpha_k \exp\!\left(-\frac{d_{ij}^2}{2 (\sigma_k^2 + \epsilon)}\right)$$

$d_{ij}$ is the distance of patches $i$ and $j$ on their grid. The mask multiplies the scores before the softmax; it is
not added. There is no norm in it.

Left out: the variant with one free number for each pair of patches. A class token has no place on the grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax import _checks


class GaussianMixtureMask(nnx.Module):
    """Multiplies the scores of attention over a grid of patches by a learned mixture of Gaussians.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> mask = nj.models.GaussianMixtureMask((2, 3), heads=4, rngs=nnx.Rngs(0))
      >>> mask(jnp.ones((5, 4, 6, 6))).shape
      (5, 4, 6, 6)

    References:
      Li and Zhang 2023, [RetNet Viewed through Convolution](https://arxiv.org/abs/2309.05375).
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        heads: int,
        components: int = 3,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        r"""Makes parameters: $\sigma$ with mean and deviation 10, $\alpha$ with mean 0 and deviation 2.

        Args:
          shape: Rows and columns of the grid whose patches, row by row, are the tokens.
          heads: Number of attention heads, each with its own mixture.
          components: Number of Gaussians.
          epsilon: Added to the squared width.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("heads", heads, 1)
        _checks.check_count("components", components, 1)
        self.shape, self.heads, self.epsilon = tuple(shape), heads, epsilon
        self.sigma = nnx.Param(10 + 10 * jax.random.normal(rngs.params(), (components, heads)))
        self.alpha = nnx.Param(2 * jax.random.normal(rngs.params(), (components, heads)))

    def __call__(self, scores: jax.Array) -> jax.Array:
        """Masks scores.

        Args:
          scores: Before the softmax, `(..., heads, patches, patches)`.

        Returns:
          The masked scores, shaped like `scores`.
        """
        patches = self.shape[0] * self.shape[1]
        expected = (self.heads, patches, patches)
        if scores.shape[-3:] != expected:
            raise ValueError(f"expected scores (..., {', '.join(map(str, expected))}), got shape {scores.shape}.")
        places = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), -1).reshape(patches, 2)
        squared = jnp.asarray(((places[:, None] - places[None]) ** 2).sum(-1), self.sigma.dtype)[None, None]
        width = (self.sigma[...] ** 2 + self.epsilon)[..., None, None]
        mask = (self.alpha[...][..., None, None] * jnp.exp(-squared / (2 * width))).sum(0)
        return scores * jnp.broadcast_to(mask, scores.shape).astype(scores.dtype)
