"""Linear interpolation in small grids of parameters, as coordinate-aware modulation reads its scale and shift."""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    ends = [_ends(coordinates[..., a].astype(dtype), grid.shape[a], padding) for a in range(axes)]
    table = grid.astype(dtype).reshape(-1, *grid.shape[axes:])
    total = jnp.zeros((), dtype)
    for corner in itertools.product(*ends):
        index, weight = corner[0]
        for (node, factor), length in zip(corner[1:], grid.shape[1:], strict=False):
            index, weight = index * length + node, weight * factor
        value = _rows(table, index)
        total = total + value * weight.reshape(weight.shape + (1,) * (value.ndim - weight.ndim))
    return total


def _ends(coordinate: jax.Array, length: int, padding: Padding) -> list[tuple[jax.Array, jax.Array]]:
    """The two nodes between which a coordinate lies along one axis, and their weights."""
    position = coordinate * (length - 1)
    position = jnp.clip(position, 0, length - 1) if padding == "border" else position
    low = jnp.floor(jax.lax.stop_gradient(position))
    found = []
    for node, weight in ((low, low + 1 - position), (low + 1, position - low)):
        if padding == "zeros":
            weight = jnp.where((node >= 0) & (node < length), weight, 0)
        found.append((jnp.clip(node, 0, length - 1).astype(jnp.int32), weight))
    return found


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    table = jnp.asarray(table)  # a NumPy array cannot be read at a traced index
    # With explicit axis types a gather by a sharded index must be told that its result is sharded like the index.
    sharding = jax.typeof(index).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return table[index]
    spec = PartitionSpec(*sharding.spec, *[None] * (table.ndim - 1))
    return table.at[index].get(out_sharding=NamedSharding(sharding.mesh, spec))
