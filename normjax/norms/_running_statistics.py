"""Running statistics: how they move in training, and normalization with them in evaluation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import Moments, variance
from normjax.norms._affine import Initializer, affine, init_affine
from normjax.norms._axes import batch_axes
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, Standardization, across, prepare


def normalize_with_statistics(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Normalization with given statistics: $y = \gamma (x-\bar\mu)/\sqrt{\bar\sigma^2+\epsilon} + \beta$.

    Args:
      x: Floating array.
      mean: $\bar\mu$, of the shape of the feature axes.
      var: $\bar\sigma^2$, likewise.
      scale: $\gamma$, likewise, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      feature_axes: Axes on which the statistics and parameters live.
      epsilon: Non-negative number added to the variance.
      mask: Broadcastable to `x`; what is not finite at its zeros is taken as 0, so that no gradient becomes NaN.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If a shape or the mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y = nj.normalize_with_statistics(jnp.array([[3.0]]), jnp.array([1.0]), jnp.array([4.0]))
      >>> print(y.round(3))
      [[1.]]

    References:
      Ioffe and Szegedy 2015, [Batch Normalization](https://arxiv.org/abs/1502.03167).
    """
    _checks.check_input(x)
    _checks.check_epsilon(epsilon)
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    dtype = statistics_dtype(x.dtype, precision)
    shape = tuple(x.shape[a] for a in features)
    _checks.check_parameter("mean", mean, x.shape, shape)
    _checks.check_parameter("var", var, x.shape, shape)
    mean, var = (_checks.broadcast_to_features(s.astype(dtype), features, x.ndim) for s in (mean, var))
    normalized = (prepare(x, mask, dtype)[0] - mean) * inverse_root(var, epsilon)
    return affine(normalized, x, scale, bias, features, precision)


def initialize(
    rng: jax.Array | None,
    x: Any,
    feature_axes: _checks.Axes,
    axis_name: AxisName,
    precision: Precision,
    scale_init: Initializer | None,
    bias_init: Initializer | None,
    starts: Mapping[str, float],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns scale and bias, and per feature the statistics of a norm over the batch at their starting values."""
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    batch_axes(x.ndim, features, axis_name)
    shape, dtype = tuple(x.shape[a] for a in features), statistics_dtype(x.dtype)
    state = {name: jnp.full(shape, value, dtype) for name, value in starts.items()}
    return init_affine(rng, shape, precision, scale_init, bias_init), state


def running_statistics(
    state: dict[str, jax.Array], debias_momentum: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the running mean and variance of a state, divided by `1 - momentum**count` if one is given."""
    mean, var = state["mean"], state["var"]
    if debias_momentum is None:
        return mean, var
    seen = state["count"] > 0
    weight = 1 - jnp.asarray(debias_momentum, mean.dtype) ** state["count"].astype(mean.dtype)
    weight = jnp.where(weight > 0, weight, 1)
    return mean / weight, jnp.where(seen, var / weight, 1)


def move(
    state: dict[str, jax.Array], values: dict[str, jax.Array], momentum: jax.Array | float, seen: jax.Array
) -> dict[str, jax.Array]:
    """Returns the named entries of a state moved towards `values` where `seen`, of their shape."""
    new = {}
    for name, value in values.items():
        old = state[name]
        weight = jnp.asarray(momentum, old.dtype)
        moved = weight * old + (1 - weight) * value.reshape(old.shape).astype(old.dtype)
        new[name] = jnp.where(seen, moved, old)
    return new


def seen_features(moments: Moments, shape: tuple[int, ...]) -> jax.Array:
    """Returns which features had a valid position in the batch, of the shape of the features."""
    return jnp.broadcast_to(moments.count > 0, moments.mean.shape).reshape(shape)


def any_valid(mask: jax.Array | None, axis_name: AxisName = None, axis_index_groups=None) -> jax.Array:
    """Returns whether a mask has a valid position on any device: a step without one does not count."""
    if mask is None:
        return jnp.asarray(True)
    valid = jnp.any(mask.astype(bool)).astype(jnp.int32)
    return across(valid, Standardization((), axis_name=axis_name, axis_index_groups=axis_index_groups)) > 0


def update_running(
    state: dict[str, jax.Array], moments: Moments, momentum: jax.Array | float | None, *, unbiased: bool = False
) -> dict[str, jax.Array]:
    """Moves the running statistics that a state has (a norm that does not centre keeps no mean) towards a batch's.

    Features whose batch was empty keep theirs.
    """
    moments = jax.lax.stop_gradient(moments)
    seen = seen_features(moments, state["var"].shape)
    new = dict(state)
    if "count" in state:
        new["count"] = state["count"] + jnp.any(seen).astype(state["count"].dtype)
    if momentum is None:
        momentum = 1 - 1 / jnp.maximum(new["count"], 1).astype(state["var"].dtype)
    batch = {"mean": moments.mean, "var": variance(moments, ddof=1 if unbiased else 0)}
    return new | move(state, {name: batch[name] for name in batch if name in state}, momentum, seen)


def update_averaged(
    state: dict[str, jax.Array], moments: Moments, batch: tuple[int, ...], momentum: float
) -> dict[str, jax.Array]:
    """Moves running statistics towards the average over the instances that are not empty, if there are any."""
    moments = jax.lax.stop_gradient(moments)
    valid = jnp.broadcast_to(moments.count > 0, moments.mean.shape)
    number = jnp.maximum(jnp.sum(valid, axis=batch), 1).astype(moments.mean.dtype)
    statistics = {"mean": moments.mean, "var": variance(moments, ddof=1)}
    averages = {name: jnp.sum(jnp.where(valid, value, 0), axis=batch) / number for name, value in statistics.items()}
    return move(state, averages, momentum, jnp.any(valid, axis=batch).reshape(state["mean"].shape))
