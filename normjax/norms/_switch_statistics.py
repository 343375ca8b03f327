"""The kinds of statistics that switchable normalization mixes, each pooled from the instances'."""

import jax
import jax.numpy as jnp

from normjax.moments import Moments, centred, compute_moments, variance, weighted_central, weighted_means
from normjax.reductions import Standardization

Statistics = tuple[jax.Array, jax.Array, jax.Array]


def statistics(
    values: jax.Array, mask: jax.Array | None, spatial: tuple[int, ...], specs: tuple[Standardization, ...]
) -> tuple[jax.Array, list[Statistics]]:
    """Returns the values minus the first of the means, and each kind's count, mean and variance.

    The kinds are the instances, where there are spatial axes, and what is reduced by each of the specs.
    """
    if not spatial:
        around, first = centred(values, mask, specs[0])
        return around, [_described(first), *(_described(_moments(values, mask, spec)) for spec in specs[1:])]
    around, instance = centred(values, mask, Standardization(spatial))
    return around, [_described(instance), *(_pooled(instance, spec) for spec in specs)]


def _described(moments: Moments) -> Statistics:
    return moments.count, moments.mean, variance(moments, ddof=1)


def _moments(values, mask, spec: Standardization) -> Moments:
    mapped = {"axis_name": spec.axis_name, "axis_index_groups": spec.axis_index_groups}
    return compute_moments(values, spec.axes, mask=mask, **mapped)


def _pooled(instance: Moments, spec: Standardization) -> Statistics:
    """The mean of the means; the mean of the unbiased variances and the variance of the means, not a mean square."""
    _, total, mean, between = weighted_central(instance.mean, instance.count, spec)
    _, (within,) = weighted_means((variance(instance, ddof=1),), instance.count, spec)
    return total, mean, jnp.where(total > 0, within + between, 1)
