r"""What layer masking (Balasubramanian and Feizi 2022) does with its mask besides normalizing: `mask_carrying_norm`.

$$\text{global mean: } \frac{\langle m \odot x\rangle}{\langle m\rangle + \epsilon},\qquad
\text{a ring of a hole: } x \leftarrow x + (1-m)\,\frac{\Sigma x}{\Sigma m + \epsilon}$$

Not copied: the published partial convolution fails with a bias.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from normjax import _checks
from normjax.moments import compute_moments
from normjax.reductions import prepare


def masked_global_mean(
    x: jax.Array, mask: jax.Array, *, axis: _checks.Axes = (1, 2), epsilon: float = 1e-8
) -> jax.Array:
    r"""The mean over what a mask keeps: $\langle m x\rangle / (\langle m\rangle + \epsilon)$; 0 where it keeps nothing.

    Args:
      x: Floating array.
      mask: Broadcastable to `x`, any dtype; zero removes.
      axis: Axes to reduce; the spatial ones of channels-last images by default.
      epsilon: Added to the fraction that is kept.

    Returns:
      The mean, reduced axes kept with size 1, in the dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.masked_global_mean(jnp.array([[1.0, 3.0, jnp.nan]]), jnp.array([1, 1, 0]), axis=-1))
      [[2.]]

    References:
      Balasubramanian and Feizi 2022, [Towards Improved Input Masking for Convolutional Neural
      Networks](https://arxiv.org/abs/2211.14646).
    """
    _checks.check_epsilon(epsilon)
    moments = compute_moments(x, axis, mask=mask)
    size = math.prod(x.shape[a] for a in _checks.canonical_axes(axis, x.ndim))
    divisor = jnp.where(moments.count > 0, moments.count + jnp.asarray(epsilon * size, moments.count.dtype), 1)
    return (moments.mean * (moments.count / divisor)).astype(x.dtype)


def fill_holes(
    x: jax.Array,
    mask: jax.Array,
    *,
    rounds: int,
    spatial_axes: _checks.Axes = (1, 2),
    window: int = 3,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    r"""Fills removed positions by the mean of kept neighbours, ring by ring, as constants for the gradient.

    Each round: $x \leftarrow x + (1-m)\,\Sigma x / (\Sigma m + \epsilon)$ and $m \leftarrow \min(m + \Sigma m, 1)$;
    $\Sigma$ sums a window around each position. The published rounds are the width of the next convolution's kernel.

    Args:
      x: Floating array; what is removed counts as 0.
      mask: Of the rank of `x` and broadcastable to it, any dtype; zero removes.
      rounds: How many rings are filled.
      spatial_axes: Axes along which neighbours are.
      window: Odd width of the window.
      epsilon: Added to the number of kept neighbours.

    Returns:
      `(filled, mask)` with the grown mask, in the shape of the given one and the dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask, window or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, m = jnp.array([[1.0, 0.0, 3.0, 0.0, 0.0]]), jnp.array([[1, 0, 1, 0, 0]])
      >>> filled, grown = nj.fill_holes(x, m, rounds=1, spatial_axes=1)
      >>> print(filled.astype(jnp.float16), grown)
      [[1. 2. 3. 3. 0.]] [[1. 1. 1. 1. 0.]]

    References:
      Balasubramanian and Feizi 2022, [Towards Improved Input Masking](https://arxiv.org/abs/2211.14646).
    """
    axes = _checks.canonical_axes(spatial_axes, x.ndim, "spatial_axes")
    _checks.check_input(x)
    _checks.check_epsilon(epsilon)
    if window < 1 or window % 2 == 0 or mask.ndim != x.ndim:
        raise ValueError(
            f"expected an odd window and a mask of rank {x.ndim}, got window={window} and a mask of shape {mask.shape}."
        )
    values, _ = prepare(x, mask)
    values = jnp.where(mask.astype(bool), values, 0)
    kept = mask.astype(bool).astype(values.dtype)
    kept = jnp.broadcast_to(kept, tuple(x.shape[a] if a in axes else kept.shape[a] for a in range(x.ndim)))
    size = tuple(window if a in axes else 1 for a in range(x.ndim))

    def near(v):
        # A concrete start: of a traced one JAX does not know that it is neutral, nor then the derivative of the sum.
        return jax.lax.reduce_window(v, np.zeros((), v.dtype), jax.lax.add, size, (1,) * x.ndim, "SAME")

    for _ in range(rounds):
        around = near(kept)
        fill = (1 - kept) * near(values) / (around + jnp.asarray(epsilon, values.dtype))
        values = values + jax.lax.stop_gradient(fill)
        kept = jnp.minimum(kept + around, 1)
    return values.astype(x.dtype), kept.astype(x.dtype)
