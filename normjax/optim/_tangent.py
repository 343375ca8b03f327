"""Updates without their radial part: projection onto the tangent space of the sphere (AdamP, SGDP)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, is_traced, norm, spread, wide
from normjax.optim._paths import flatten
from normjax.optim._radii import present, selection


class ProjectUpdatesState(NamedTuple):
    """State of the inner transformation."""

    inner_state: Any


def tangential(p: jax.Array, u: jax.Array, axes: Axes) -> jax.Array:
    """`u` without its component along `p`; all of it where `p` is zero."""
    length = norm(p, axes)
    unit = p / spread(jnp.where(length > 0, length, 1), axes)
    return u - unit * spread(jnp.sum(unit * u, axis=axes), axes)


def _cosine(p: jax.Array, g: jax.Array, axes: Axes) -> jax.Array:
    """Largest |cosine| of the slices; zero for zero vectors, which have no radial part."""
    lengths = norm(p, axes) * norm(g, axes)
    return jnp.max(jnp.abs(jnp.sum(p * g, axis=axes)) / jnp.where(lengths > 0, lengths, 1))


def _project(p: jax.Array, u: jax.Array, g: jax.Array, axes: Axes, threshold: Any) -> jax.Array:
    p = wide(p)
    u, g = wide(u).astype(p.dtype), wide(g).astype(p.dtype)
    if threshold is None:
        return tangential(p, u, axes)
    whole, result = tuple(range(p.ndim)), u
    # The finer view decides first, so it is applied last; a whole tensor is tried where some neuron fails.
    for view in [whole] if axes == whole else [whole, axes]:
        size = math.prod(p.shape[a] for a in view)
        small = _cosine(p, g, view) < jnp.asarray(threshold, p.dtype) / math.sqrt(size)
        result = jnp.where(small, tangential(p, u, view), result)
    return result


def project_updates(
    inner: optax.GradientTransformation | None = None,
    *,
    threshold: Any = None,
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Remove from updates what lies along the weights (AdamP, SGDP).

    .. math:: \Pi_w(u) = u - \frac{w \langle w, u \rangle}{\lVert w \rVert^2}, \qquad
        u' = \Pi_w(u) \;\text{ if }\; |\cos(w, g)| < \delta / \sqrt{\dim w} \;\text{ else }\; u

    Gradients of scale-invariant weights are tangential, but momenta are sums of gradients at other weights: their
    radial part makes norms grow, and the effective learning rate fall, faster than the steps themselves do. The test
    with threshold :math:`\delta` on the gradient :math:`g` recognises scale-invariant weights without being told. A
    tangential step still lengthens the weights, by :math:`\lVert u' \rVert^2 / 2 \lVert w \rVert`: only
    `project_weights` holds the norm.

    Place it around the part of the optimizer that keeps momenta and before weight decay. AdamP is
    `optax.chain(project_updates(optax.scale_by_adam(), threshold=0.1, axes=..., mask=...),
    optax.scale_by_learning_rate(rate))`, SGDP the same with `optax.trace(0.9)`. The authors' code also
    multiplies weight decay by 0.1 where it projects.

    Args:
      inner: what turns gradients into updates; `None`: the incoming updates are gradients and updates at once.
      threshold: :math:`\delta`, 0.1 in the paper; `None`: the selected weights are known to be scale-invariant, and are
        always projected.
      axes: the axes of one weight vector, as in `project_weights`. With a threshold all vectors of a weight are
        projected together: all must pass; if one fails, the whole weight is tested as one vector. The paper's two
        views are per neuron, `axes=lambda path, w: tuple(range(w.ndim - 1))` for kernels of Flax, and that.
      mask: which weights, as in `project_weights`. The paper tests every weight of two or more dimensions:
        `mask=lambda params: jax.tree.map(lambda w: w.ndim > 1, params)`.

    Returns:
      A transformation with state `ProjectUpdatesState(inner_state)`; extra arguments of `update` reach `inner`.

    Raises:
      ValueError: no `params` in `update`; a threshold that is not positive; a mask that selects nothing; `axes` that
        do not fit the parameters.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import project_updates
      >>> tx = project_updates(optax.trace(0.9), mask=True)
      >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.array([[0.5, 2.0]])}, tx.init(params), params)
      >>> updates["kernel"].tolist()
      [[0.0, 2.0]]

    References:
      Heo et al., AdamP: slowing down the slowdown for momentum optimizers on scale-invariant weights, 2020,
      https://arxiv.org/abs/2006.08217
    """
    if threshold is not None and not is_traced(threshold) and not threshold > 0:
        raise ValueError(f"threshold bounds |cos| from above and must be positive, got {threshold!r}.")
    optimizer = optax.with_extra_args_support(optax.identity() if inner is None else inner)

    def init(params: Any) -> ProjectUpdatesState:
        selection(params, axes, mask, "project_updates")
        return ProjectUpdatesState(optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ProjectUpdatesState]:
        chosen, gradients = selection(params, axes, mask, "project_updates"), flatten(updates).leaves
        updates, inner_state = optimizer.update(updates, state.inner_state, params, **extra)
        steps = flatten(updates)
        projected = {
            path: _project(chosen.leaves[path], u, gradients[path], chosen.axes[path], threshold)
            for path, u in present(steps.leaves, chosen.leaves).items()
        }
        return steps.replace(projected), ProjectUpdatesState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
