"""Standardization of two complementary regions, shared by region normalization with given and with learned regions."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._centre import rounded
from normjax.precision import Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, count_valid, means, prepare, standardization


def standardize_regions(
    x: jax.Array,
    foreground: jax.Array,
    axis: _checks.Axes | None,
    feature: int,
    epsilon: float,
    mask: jax.Array | None,
    axis_name: AxisName,
    precision: Precision,
) -> jax.Array:
    """Each position by the statistics of its own region, epsilon divided by the region's share of the positions.

    A region without a valid position has statistics (0, 1), like every empty set.
    """
    axes = _checks.other_axes((feature,), x.ndim) if axis is None else _checks.canonical_axes(axis, x.ndim)
    spec = standardization(x, axes, epsilon=epsilon, axis_name=axis_name)
    values, valid = prepare(x, mask, statistics_dtype(x.dtype, precision))
    inside = jnp.broadcast_to(foreground, values.shape)
    members = [member if valid is None else member & valid for member in (inside, ~inside)]
    highs, lows, factors = [], [], []
    counts = [count_valid(values, member, spec) for member in members]
    for member, count in zip(members, counts, strict=True):
        # As `normjax._centre` does for one set: an array that both regions use would be written out.
        near = rounded(jax.lax.stop_gradient(means((values,), member, count, spec)[0]))
        rest, square = means((values - near, jnp.square(values - near)), member, count, spec)
        highs.append(rounded(near + rest))
        lows.append(rest - (highs[-1] - near))
        some = count > 0
        share = jnp.where(some, count / jnp.maximum(sum(counts), 1), 1)
        var = jnp.where(some, jnp.maximum(square - rest * rest, 0), 1)
        factors.append(inverse_root(share * var, epsilon) * jnp.sqrt(share))
    centred = values - jnp.where(foreground, *highs) - jnp.where(foreground, *lows)
    return centred * jnp.where(foreground, *factors)
