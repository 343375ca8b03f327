r"""Manifold-constrained hyper-connections (Xie et al. 2025), as DeepSeek-V4 has them, around any sublayer.

The residual is $m$ streams $X \in \mathbb R^{m \times d}$. From their normalized concatenation come three mixings,

$$(\tilde a, \tilde b, \tilde C) = s \odot W\, N(\operatorname{vec} X) + w_0$$

$$a = \sigma(\tilde a) + \epsilon,\qquad b = 2\sigma(\tilde b),\qquad
C = \operatorname{Sinkhorn}(\operatorname{softmax} \tilde C + \epsilon)$$

and the sublayer $F$ reads and writes $X' = b\, F(a^\top X)^\top + C^\top X$. $C$ is doubly stochastic up to $\epsilon$
and the number of rounds, so that a product over many layers neither grows nor dies out.

Left out: the sublayer, and the head that merges the streams after the last one.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import rms_norm
from normjax.precision import statistics_dtype
from normjax.transform import NormTransform


def sinkhorn(matrix: jax.Array, *, rounds: int = 20, epsilon: float = 1e-6) -> jax.Array:
    r"""Divides columns, then rows and columns in turn, by their sums: a positive matrix becomes doubly stochastic.

    $$M \leftarrow M / (\textstyle\sum_i M_{ij} + \epsilon),\qquad
    M \leftarrow M / (\textstyle\sum_j M_{ij} + \epsilon),\ \ldots$$

    Args:
      matrix: Positive, floating `(..., n, n)`; its rows are expected to have sums of about one, as a softmax gives.
      rounds: Number of divisions by the sums of the columns; between two of them lies one by those of the rows.
      epsilon: Added to every sum.

    Returns:
      A matrix of the same shape and dtype, its columns summing to one, its rows nearly so.

    Raises:
      ValueError: If the matrix is not square or there is no round.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.models import sinkhorn
      >>> m = sinkhorn(jnp.array([[0.9, 0.1], [0.5, 0.5]]), epsilon=0.0)
      >>> print(m.round(2), m.sum(0).round(3), m.sum(1).round(3))
      [[0.75 0.25]
       [0.25 0.75]] [1. 1.] [1. 1.]

    References:
      Sinkhorn and Knopp 1967; Xie et al. 2025,
      [Manifold-Constrained Hyper-Connections](https://arxiv.org/abs/2512.24880).
    """
    _checks.check_count("rounds", rounds, 1)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"expected a matrix of shape (..., n, n), got {matrix.shape}.")
    matrix = _divided(matrix, -2, epsilon)
    for _ in range(rounds - 1):
        matrix = _divided(_divided(matrix, -1, epsilon), -2, epsilon)
    return matrix


def _divided(matrix, axis, epsilon):
    return matrix / (matrix.sum(axis, keepdims=True) + epsilon)


class HyperConnection(nnx.Module):
    """The mixings of one sublayer: what it reads from the streams, and how its output returns to them.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> connection = nj.models.HyperConnection(8, streams=4, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 3, 4, 8))
      >>> read, write, mix = connection(x)
      >>> x = connection.merge(x, jnp.tanh(read), write, mix)
      >>> read.shape, x.shape
      ((2, 3, 8), (2, 3, 4, 8))

    References:
      Zhu et al. 2024, [Hyper-Connections](https://arxiv.org/abs/2409.19606); Xie et al. 2025,
      [Manifold-Constrained Hyper-Connections](https://arxiv.org/abs/2512.24880).
    """

    def __init__(
        self,
        features: int,
        streams: int = 4,
        *,
        norm: NormTransform | None = None,
        rounds: int = 20,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        """Makes parameters.

        Args:
          features: $d$, width of one stream.
          streams: $m$.
          norm: The norm of the concatenated streams; `None` is the RMS norm without scale that the model has.
          rounds: Of Sinkhorn's normalization.
          epsilon: Added to the mixings and to the sums.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("streams", streams, 1)
        self.features, self.streams, self.rounds, self.epsilon = features, streams, rounds, epsilon
        self.norm = Norm(rms_norm(use_scale=False) if norm is None else norm, streams * features, rngs=rngs)
        self.mixing = nnx.Linear(streams * features, streams * (2 + streams), use_bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(streams * (2 + streams)))
        # A small scale begins near the mixings that the bias states.
        # With its dtype: a number alone is weakly typed, and a step that makes it a strong one would be compiled twice.
        self.scale = nnx.Param(jnp.full((3,), 0.01, float))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Computes the mixings, in at least float32.

        Args:
          x: Streams, `(..., streams, features)`.

        Returns:
          What the sublayer reads, `(..., features)`; $b$, `(..., streams)`; and $C$, `(..., streams, streams)`.
        """
        if x.ndim < 2 or x.shape[-2:] != (self.streams, self.features):
            raise ValueError(f"expected streams (..., {self.streams}, {self.features}), got shape {x.shape}.")
        wide = x.astype(statistics_dtype(x.dtype))
        flat = self.norm(wide.reshape(*x.shape[:-2], -1))
        m = self.streams
        parts = zip(*(jnp.split(a, (m, 2 * m), axis=-1) for a in (self.mixing(flat), self.bias[...])), strict=True)
        read, write, mix = (
            values * scale + jnp.broadcast_to(bias, values.shape)
            for scale, (values, bias) in zip(self.scale[...], parts, strict=True)
        )
        read = jax.nn.sigmoid(read) + self.epsilon
        mix = jax.nn.softmax(mix.reshape(*mix.shape[:-1], m, m)) + self.epsilon
        collapsed = (read[..., None] * wide).sum(-2).astype(x.dtype)
        return collapsed, 2 * jax.nn.sigmoid(write), sinkhorn(mix, rounds=self.rounds, epsilon=self.epsilon)

    def merge(self, x: jax.Array, update: jax.Array, write: jax.Array, mix: jax.Array) -> jax.Array:
        """Mixes the streams and adds the sublayer's output to each.

        Args:
          x: Streams, `(..., streams, features)`, that `write` and `mix` were made of.
          update: The sublayer's output, `(..., features)`.
          write: $b$, `(..., streams)`.
          mix: $C$, `(..., streams, streams)`.

        Returns:
          Streams, shaped like `x` and in its dtype.
        """
        mixed = jnp.einsum("...ij,...id->...jd", mix, x.astype(mix.dtype))
        return (write[..., None] * update[..., None, :].astype(mix.dtype) + mixed).astype(x.dtype)
