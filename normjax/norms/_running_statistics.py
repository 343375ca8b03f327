"""Running statistics: how they move in training, and normalization with them in evaluation."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import Moments, variance
from normjax.norms._affine import affine
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype


def normalize_with_statistics(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
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
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If a shape does not fit or epsilon is negative.

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
    normalized = (x.astype(dtype) - mean) * inverse_root(var, epsilon)
    return affine(normalized, x, scale, bias, features, precision)


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


def update_running(
    state: dict[str, jax.Array], moments: Moments, momentum: float | None, *, unbiased: bool = False
) -> dict[str, jax.Array]:
    """Moves the running statistics that a state has (a norm that does not centre keeps no mean) towards a batch's.

    Features whose batch was empty keep theirs.
    """
    shape, dtype = state["var"].shape, state["var"].dtype
    moments = jax.lax.stop_gradient(moments)
    seen = jnp.broadcast_to(moments.count > 0, moments.mean.shape).reshape(shape)
    new = dict(state)
    weight = jnp.asarray(0 if momentum is None else momentum, dtype)
    if "count" in state:
        new["count"] = state["count"] + jnp.any(seen).astype(state["count"].dtype)
        if momentum is None:
            weight = 1 - 1 / jnp.maximum(new["count"], 1).astype(dtype)
    batch = {"mean": moments.mean, "var": variance(moments, ddof=1 if unbiased else 0)}
    for name in batch.keys() & state.keys():
        value = batch[name]
        moved = weight * state[name] + (1 - weight) * value.reshape(shape).astype(dtype)
        new[name] = jnp.where(seen, moved, state[name])
    return new


def update_averaged(
    state: dict[str, jax.Array], moments: Moments, batch: tuple[int, ...], momentum: float
) -> dict[str, jax.Array]:
    """Moves running statistics towards the average over the instances that are not empty, if there are any."""
    moments = jax.lax.stop_gradient(moments)
    valid = jnp.broadcast_to(moments.count > 0, moments.mean.shape)
    shape = state["mean"].shape
    seen = jnp.any(valid, axis=batch).reshape(shape)
    new = {}
    for name, value in {"mean": moments.mean, "var": variance(moments, ddof=1)}.items():
        total = jnp.sum(jnp.where(valid, value, 0), axis=batch)
        average = (total / jnp.maximum(jnp.sum(valid, axis=batch), 1).astype(total.dtype)).reshape(shape)
        moved = momentum * state[name] + (1 - momentum) * average.astype(state[name].dtype)
        new[name] = jnp.where(seen, moved, state[name])
    return new
