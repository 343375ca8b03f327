"""The sinusoidal embedding of times and layer indices, as conditional norms read them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from normjax.precision import statistics_dtype


def sinusoidal_embedding(
    positions: jax.Array,
    features: int = 256,
    *,
    max_period: float = 10000.0,
    flip_sin_to_cos: bool = True,
    downscale_freq_shift: float = 0.0,
) -> jax.Array:
    r"""Cosines and sines of positions: frequencies $e^{-\ln(P)\,k / (n - d)}$ for $k < n$, half of the features each.

    Args:
      positions: Numbers of any shape: times, layer indices.
      features: Even number of outputs, $2n$.
      max_period: $P$.
      flip_sin_to_cos: Whether cosines come first.
      downscale_freq_shift: $d$; 1 makes the last frequency $1/P$.

    Returns:
      An array of shape `(*positions.shape, features)`, at least float32.

    Raises:
      ValueError: If `features` is odd or leaves no frequency.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.sinusoidal_embedding(jnp.array([0.0, 1.0]), 4).round(3))
      [[1.    1.    0.    0.   ]
       [0.54  1.    0.841 0.01 ]]

    References:
      Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
    """
    half = features // 2
    if features % 2 or half <= downscale_freq_shift:
        raise ValueError(f"expected an even number of features above {2 * downscale_freq_shift}, got {features}.")
    positions = jnp.asarray(positions)
    dtype = statistics_dtype(positions.dtype)
    exponents = -math.log(max_period) * np.arange(half) / (half - downscale_freq_shift)
    frequencies = jnp.expand_dims(jnp.asarray(np.exp(exponents), dtype), tuple(range(positions.ndim)))
    angles = positions.astype(dtype)[..., None] * frequencies
    parts = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(parts if flip_sin_to_cos else parts[::-1], axis=-1)
