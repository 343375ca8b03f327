"""The kinds of statistics that switchable normalization mixes, each pooled from the instances'."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax._centre import Centre
from normjax.moments import Moments, centred, pool_moments, variance
from normjax.reductions import Standardization


class Kind(NamedTuple):
    """One kind's number of valid values, mean and variance."""

    valid: jax.Array
    centre: Centre
    var: jax.Array


def statistics(
    values: jax.Array, mask: jax.Array | None, spatial: tuple[int, ...], specs: tuple[Standardization, ...]
) -> tuple[jax.Array, list[Kind]]:
    """Returns the values minus the first of the means, and the kinds.

    The kinds are the instances, where there are spatial axes, and what is reduced by each of the specs.
    """
    if not spatial:
        found = [centred(values, mask, spec) for spec in specs]
        return found[0][0], [_described(centre, moments) for _, centre, moments in found]
    around, centre, instance = centred(values, mask, Standardization(spatial))
    first = _described(centre, instance)
    # The mean of the unbiased variances, not a mean square.
    pooled = [pool_moments(centre, instance, spec, within=first.var) for spec in specs]
    return around, [first, *(Kind(m.count, centre, variance(m)) for centre, m in pooled)]


def _described(centre: Centre, moments: Moments) -> Kind:
    return Kind(moments.count, centre, variance(moments, ddof=1))


def given(mean: jax.Array, var: jax.Array) -> Kind:
    """A kind that was not measured here."""
    return Kind(jnp.ones_like(mean), Centre(mean, mean), var)
