"""Weights held inside a ball: projected back only when they have left it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, norm, spread, wide
from normjax.optim._radii import with_radii


def _clip_leaf(p: jax.Array, u: jax.Array, r: jax.Array, axes: Axes) -> jax.Array:
    p, u = wide(p), wide(u).astype(wide(p).dtype)
    length = norm(p + u, axes)
    outside = (r > 0) & (length > r.astype(p.dtype)) & jnp.isfinite(length)
    factor = jnp.where(outside, r.astype(p.dtype) / jnp.where(outside, length, 1), 1)
    # Inside the ball the update stays as it came, bit by bit: (p + u) - p would round it.
    return jnp.where(spread(outside, axes), (p + u) * spread(factor, axes) - p, u)


def clip_weights(
    radius: Any,
    *,
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the norm of weights at or below a radius (max-norm constraint, weight clipping).

    .. math:: u' = \min\left(1, \frac{r}{\lVert w + u \rVert}\right) (w + u) - w

    Norms may shrink and grow inside the ball, so the effective learning rate has a lower bound,
    :math:`\eta r_0 / r`, and no upper one; `project_weights` fixes it. Place it last in a chain. Weights with radius
    zero are left alone. Per-entry clipping to a box is `optax.projections.projection_box`.

    Args:
      radius: largest norm, as in `project_weights`: `"init"`, a number, a tree, or `radius(path, weight)`, e.g.
        `fan_radius(2.0)`.
      axes: the axes of one norm, as in `project_weights`; the usual max-norm constraint is per neuron, `axes=0` for
        kernels `(in, out)`.
      mask: which weights, as in `project_weights`.

    Returns:
      A transformation with state `RadiiState(count, radii)`.

    Raises:
      ValueError: as for `project_weights`.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import clip_weights
      >>> tx = optax.chain(optax.sgd(1.0), clip_weights(5.0, axes=0, mask=True))
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": -params["kernel"]}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[3.0, 2.0], [4.0, 0.0]]

    References:
      Hinton et al., Improving neural networks by preventing co-adaptation of feature detectors, 2012,
      https://arxiv.org/abs/1207.0580

      Elsayed et al., Weight clipping for deep continual and reinforcement learning, 2024,
      https://arxiv.org/abs/2407.01704
    """

    def rule(weights: Any, updates: Any, radii: Any, reduced: Any, count: jax.Array) -> dict[str, jax.Array]:
        del count
        return {path: _clip_leaf(weights[path], u, radii[path], reduced[path]) for path, u in updates.items()}

    return with_radii("clip_weights", rule, radius, axes, mask)
