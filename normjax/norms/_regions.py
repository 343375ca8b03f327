"""Standardization of two complementary regions, shared by region normalization with given and with learned regions."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import standardize, variance
from normjax.precision import Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization


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
    found = []
    for member in (foreground, ~foreground):
        found.append(standardize(values, member if valid is None else member & valid, spec))
    total = found[0][1].count + found[1][1].count
    parts = []
    for normalized, moments in found:
        share = jnp.where(moments.count > 0, moments.count / jnp.maximum(total, 1), 1)
        # The same deviations by another divisor: one value for each set, and nothing singular without a spread.
        used, wanted = (inverse_root(v, epsilon) for v in (variance(moments), share * variance(moments)))
        parts.append(normalized * (wanted * jnp.sqrt(share) / jnp.where(used > 0, used, 1)))
    return jnp.where(foreground, *parts)
