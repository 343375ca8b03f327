"""The forward statistics of Unified Normalization: a window of mean squares, outlier filtration and its guard."""

import jax
import jax.numpy as jnp

from normjax.moments import compute_moments, variance

_COMPENSATED_AFTER = 1000


def put(window: jax.Array, count: jax.Array, value: jax.Array) -> jax.Array:
    """The window with `value` in the slot of step `count`."""
    slots = jnp.arange(window.shape[0], dtype=count.dtype).reshape(-1, *[1] * value.ndim)
    return jnp.where(slots == count % window.shape[0], value[None].astype(window.dtype), window)


def _geometric(window: jax.Array) -> jax.Array:
    return jnp.exp(jnp.mean(jnp.log(window), axis=0))


def _filter(state, window, running, square, seen, warmup: int, max_skips: int | None):
    """Whether this batch is an outlier, window and running value without it, and skips in a row if guarded."""
    old, count, size = state["buffer_x2"], state["count"] + 1, window.shape[0]
    deviations = compute_moments(jnp.sqrt(old), tuple(range(old.ndim)))
    threshold = size * variance(deviations, ddof=1).reshape((1,) * square.ndim)
    gap = jnp.mean(window, axis=0) - _geometric(window)
    armed = count >= (warmup if max_skips is None else max(warmup, size))
    outlier = armed & jnp.any((gap > threshold) & seen)
    streak = None
    if max_skips is not None:
        # So many outliers in a row are the new scale: everything starts again with it.
        lasting = outlier & (state["streak"] >= max_skips)
        window = jnp.where(lasting, jnp.broadcast_to(square, window.shape).astype(window.dtype), window)
        running = jnp.where(lasting, square, running)
        outlier = outlier & ~lasting
        streak = jnp.where(outlier, state["streak"] + 1, 0)
    return outlier, jnp.where(outlier, put(window, count, running), window), running, streak


def smooth(state, square, seen, *, warmup: int, momentum: float, epsilon: float, filtered: bool, max_skips: int | None):
    """The mean square to normalize with, the factor r, whether the batch is skipped, and the new state."""
    count, running = state["count"] + 1, state["var"].astype(square.dtype)
    size = state["buffer_x2"].shape[0]
    window = put(state["buffer_x2"], count, square)
    new = {"count": count, "skipped": state["skipped"]}
    skip = outlier = jnp.zeros((), bool) | (size == 1)
    if filtered:
        outlier, window, running, streak = _filter(state, window, running, square, seen, warmup, max_skips)
        skip, new["skipped"] = skip | outlier, state["skipped"] + outlier.astype(jnp.int32)
        if streak is not None:
            new["streak"] = streak
    plain = (count <= max(size, warmup - 1)) | skip | ~seen
    var = jnp.where(plain, square, _geometric(window).astype(square.dtype))
    ratio = jnp.clip(jnp.sqrt((var + epsilon) / (running + epsilon)), 1 / 5, 5)
    ratio = jnp.where((count <= max(_COMPENSATED_AFTER, warmup)) | skip | ~seen, 1, ratio)
    new["buffer_x2"] = window
    new["var"] = momentum * running + (1 - momentum) * var
    if filtered and max_skips is not None:
        # An outlier leaves no trace, neither in evaluation nor in the slots that it is replaced in.
        new["var"] = jnp.where(outlier, running, new["var"])
    return var, ratio, skip, new
