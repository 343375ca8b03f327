"""Linear interpolation in small grids of parameters, as coordinate-aware modulation reads its scale and shift."""

from typing import Literal

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import promote

Padding = Literal["border", "zeros"]


def interpolate_grid(grid: jax.Array, coordinates: jax.Array, *, padding: Padding = "border") -> jax.Array:
    """Multilinear interpolation of a grid whose first and last points lie at 0 and 1.

    Args:
      grid: Floating array `(*resolution, *features)`.
      coordinates: Floating array `(*points, axes)`: one coordinate for each axis of the resolution, in its order.
      padding: `"border"` keeps the border's values outside [0, 1]; `"zeros"` continues the grid with zeros.

    Returns:
      Array of shape `(*points, *features)`.

    Raises:
      TypeError: If the coordinates are not floating.
      ValueError: If there are more coordinates than axes of the grid, or the padding is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.interpolate_grid(jnp.array([0.0, 1.0, 4.0]), jnp.array([[0.25], [0.75], [2.0]])))
      [0.5 2.5 4. ]

    References:
      Lee et al. 2024, [Coordinate-Aware Modulation for Neural Fields](https://arxiv.org/abs/2311.14993).
    """
    _checks.check_input(coordinates)
    _checks.check_choice("padding", padding, Padding)
    axes = coordinates.shape[-1]
    if not 1 <= axes <= grid.ndim:
        raise ValueError(
            f"expected 1 to {grid.ndim} coordinates on the last axis for a grid of shape {grid.shape}, got coordinates "
            f"of shape {coordinates.shape}."
        )
    dtype = promote(grid.dtype, coordinates.dtype)
    value, rest = grid.astype(dtype), "bcdefgh"[: grid.ndim - 1]
    # Products with hat functions rather than gathers: grids are small, and the transpose is a product too, no scatter.
    for axis, length in enumerate(grid.shape[:axes]):
        position = coordinates[..., axis, None].astype(dtype) * (length - 1)
        position = jnp.clip(position, 0, length - 1) if padding == "border" else position
        nodes = jnp.arange(length, dtype=dtype).reshape((1,) * (coordinates.ndim - 1) + (-1,))
        weights = jnp.maximum(1 - jnp.abs(position - nodes), 0)
        value = jnp.einsum(f"...a,{'...' if axis else ''}a{rest}->...{rest}", weights, value)
        rest = rest[1:]
    return value
