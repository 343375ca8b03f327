"""Scalable softmax on the logits themselves (Nakanishi 2025); the cheap form, on the queries, is `ssmax`."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.norms.ssmax import ssmax_scale, visible_keys
from normjax.reductions import prepare


def scalable_softmax(
    logits: jax.Array, scale: jax.Array, *, mask: jax.Array | None = None, head_axis: int = -3
) -> jax.Array:
    r"""Scalable softmax of attention logits over their last axis.

    Args:
      logits: Floating, `(..., heads, queries, keys)`.
      scale: $s$, of shape `(heads,)`.
      mask: Broadcastable to `logits`; zero hides a key. A query that sees none attends to nothing: its row is 0.
      head_axis: The axis of heads.

    Returns:
      Attention weights, shaped and typed like `logits`.

    Raises:
      TypeError: If `logits` are not floating.
      ValueError: If scale or mask do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> logits = jnp.zeros((1, 1, 4)).at[..., 0].set(1.0)
      >>> weights = nj.scalable_softmax(logits, jnp.ones(1))
      >>> bool(jnp.allclose(weights, jnp.array([4.0, 1.0, 1.0, 1.0]) / 7))
      True

    References:
      Nakanishi 2025, [Scalable-Softmax Is Superior for Attention](https://arxiv.org/abs/2501.19399).
    """
    _checks.check_input(logits, (logits.ndim - 1,))
    z, seen = prepare(logits, mask)
    seen = jnp.ones((1,) * logits.ndim, bool) if seen is None else seen
    seen = jnp.broadcast_to(seen, (*seen.shape[:-1], logits.shape[-1]))
    z = ssmax_scale(z, scale, visible_keys(seen), head_axis=head_axis)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(seen, z, -jnp.inf), axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, z - jnp.where(jnp.isfinite(top), top, 0), 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights / jnp.where(total > 0, total, 1)).astype(logits.dtype)
