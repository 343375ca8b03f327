"""Hyperball optimizers (AdamH, MuonH): steps of a fixed share of the radius, on the sphere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, at_step, norm, spread, wide
from normjax.optim._project import project_leaf
from normjax.optim._radii import with_radii
from normjax.optim._track import check_learning_rate


def _step_leaf(p: jax.Array, u: jax.Array, r: jax.Array, axes: Axes, rate: jax.Array) -> jax.Array:
    p, u = wide(p), wide(u).astype(wide(p).dtype)
    size, r = norm(u, axes), r.astype(p.dtype)
    sized = (r > 0) & (size > 0)
    factor = jnp.where(sized, rate.astype(p.dtype) * r / jnp.where(sized, size, 1), 1)
    return project_leaf(p, u * spread(factor, axes), r, axes)[0]


def hyperball(
    learning_rate: Any,
    *,
    radius: Any = "init",
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Move weights by a fixed share of their radius along the incoming update, then back to the sphere.

    .. math:: w' = r \, \mathrm{N}\bigl(w + \eta \, r \, \mathrm{N}(u)\bigr), \qquad
        \mathrm{N}(x) = x / \lVert x \rVert

    Only the direction of :math:`u` counts: :math:`\eta` is the effective learning rate itself, one number for layers
    of all widths. Place it last, after a complete optimizer; its learning rate then acts only on what the mask leaves
    out (readouts, embeddings, vectors), and its weight decay on selected weights only turns their direction: leave it
    out. AdamH is `optax.chain(optax.adam(1e-3), hyperball(0.02))`, MuonH
    `optax.chain(optax.contrib.muon(0.02, adam_learning_rate=1e-3), hyperball(0.02))`.

    Weights with norm or radius zero follow the incoming update as it is; a zero update moves nothing.

    Args:
      learning_rate: :math:`\eta`, relative to the radius, or a schedule of the step (int32, from 0).
      radius: as in `project_weights`.
      axes: the axes of one norm of weights and of updates, as in `project_weights`. The authors take whole matrices:
        `axes=(1, 2)` for scanned layers `(L, in, out)`, never the expert axis of a mixture.
      mask: which weights, as in `project_weights`.

    Returns:
      A transformation with state `RadiiState(count, radii)`.

    Raises:
      ValueError: a negative learning rate; otherwise as for `project_weights`.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import hyperball, track_effective_lr, weight_motion
      >>> tx = optax.chain(optax.adam(1e-3), hyperball(0.02, mask=True), track_effective_lr())
      >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> _, state = tx.update({"kernel": jnp.array([[-4.0, 3.0]])}, tx.init(params), params)
      >>> # A little less than 0.02: Adam's update along (1, -1) is 8 degrees off the tangent.
      >>> print(f"{float(weight_motion(state)['kernel'].rotation):.4f}")
      0.0199

    References:
      Hyperball (AdamH, MuonH), 2026, https://arxiv.org/abs/2606.16899
    """
    check_learning_rate(learning_rate)

    def rule(weights: Any, updates: Any, radii: Any, reduced: Any, count: jax.Array) -> dict[str, jax.Array]:
        rate = at_step(learning_rate, count)
        return {path: _step_leaf(weights[path], u, radii[path], reduced[path], rate) for path, u in updates.items()}

    return with_radii("hyperball", rule, radius, axes, mask)
