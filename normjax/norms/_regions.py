"""Standardization of two complementary regions, shared by region normalization with given and with learned regions."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._centre import central
from normjax.precision import Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, count_valid, prepare, standardization


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
    counts = [count_valid(values, member, spec) for member in members]
    centres, factors = [], []
    for member, count in zip(members, counts, strict=True):
        centre, second = central(values, member, count, spec)
        share = jnp.where(count > 0, count / jnp.maximum(sum(counts), 1), 1)
        factors.append(inverse_root(share * jnp.where(count > 0, second, 1), epsilon) * jnp.sqrt(share))
        centres.append(centre)
    # One difference for both regions, instead of two arrays of which half is thrown away.
    centre = jax.tree.map(lambda inner, outer: jnp.where(foreground, inner, outer), *centres)
    return centre.subtracted_from(values) * jnp.where(foreground, *factors)
