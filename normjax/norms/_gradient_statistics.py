"""What the norms with statistics of gradients share: mean squares over the batch, and state of empty batches."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import standardize, variance
from normjax.norms._axes import batch_axes
from normjax.reductions import AxisName, Standardization, count_valid, means, standardization


def batch_spec(
    x: jax.Array, feature_axes: _checks.Axes, epsilon: float, axis_name: AxisName, axis_index_groups
) -> tuple[Standardization, tuple[int, ...]]:
    """The uncentred standardization over all axes that are not features, and the feature axes."""
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    axes = batch_axes(x.ndim, features, axis_name)
    options = {"epsilon": epsilon, "axis_name": axis_name, "axis_index_groups": axis_index_groups}
    return standardization(x, axes, centre=False, **options), features


def mean_square(values: jax.Array, mask: Any, spec: Standardization) -> tuple[jax.Array, jax.Array]:
    """The mean square of every feature over its valid positions, as a constant, and whether there is one (else 1)."""
    _, moments = standardize(jax.lax.stop_gradient(values), mask, spec)
    square = variance(moments)
    return _per_feature(square, spec), _per_feature(jnp.broadcast_to(moments.count > 0, square.shape), spec)


def backward_set(values: jax.Array, mask: Any, spec: Standardization) -> tuple[Any, jax.Array]:
    """Over what a backward pass takes means: the mask, or `None` for all positions, and its count.

    Counting there would be a collective of a constant, which `vmap` with an axis name cannot see in a backward pass.
    """
    return mask, count_valid(values, mask, spec)


def gradient_means(
    values: tuple[jax.Array, ...], over: tuple[Any, jax.Array], spec: Standardization
) -> list[jax.Array]:
    """Means of every feature over a `backward_set`; 0 for an empty one."""
    return [_per_feature(mean, spec) for mean in means(values, *over, spec)]


def _per_feature(kept: jax.Array, spec: Standardization) -> jax.Array:
    return jnp.squeeze(kept, spec.axes)


def keep_unseen(new: Any, old: Any, seen: jax.Array) -> Any:
    """The new state in the dtypes of the old one, which stays where a feature had no valid position in the batch."""

    def keep(new, old):
        known = jnp.broadcast_to(seen, old.shape) if old.ndim else jnp.any(seen)
        return jnp.where(known, new.astype(old.dtype), old)

    return jax.tree.map(keep, new, old)
