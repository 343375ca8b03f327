"""Learning rates stated as effective rates: for free weights, and for projected twins of free weights."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, next_count, norm, spread, wide
from normjax.optim._paths import flatten
from normjax.optim._radii import check_stored, initial_radii, present, selection, with_radii
from normjax.optim._track import check_learning_rate

Like = Literal["adam", "sgd"]


class ImplicitScheduleState(NamedTuple):
    """Steps taken (int32) and the norms that the free twin would have by now, by path (float32)."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    twin_norms: dict[str, jax.Array]


def check_like(like: str) -> None:
    """Raise unless `like` names how updates scale with gradients."""
    if like not in ("adam", "sgd"):
        raise ValueError(f'like is "adam" or "sgd", got {like!r}.')


def growth_factor(growth: jax.Array, like: str) -> jax.Array:
    """Learning rate over effective rate, of weights whose norm is `growth` times the reference."""
    return growth if like == "adam" else jnp.square(growth)


def effective_lr_schedule(effective_rate: optax.ScalarOrSchedule, *, like: Like = "adam") -> Callable[..., jax.Array]:
    r"""The learning rate that makes an intended effective rate, from the growth of the norms.

    .. math:: \eta_t = \tilde\eta_t \, \lVert w_t \rVert / r \;\text{(adam)}, \qquad
        \eta_t = \tilde\eta_t \, (\lVert w_t \rVert / r)^2 \;\text{(sgd)}

    Args:
      effective_rate: :math:`\tilde\eta`, a number or a schedule of the step.
      like: how updates scale with the gradient, as in `effective_learning_rates`.

    Returns:
      `schedule(count, growth)`: the learning rate in the shape of `growth`, the norm over its reference as
      `weight_motion(opt_state)[path].growth` measures it.

    Raises:
      ValueError: a negative rate, or an unknown `like`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import effective_lr_schedule
      >>> schedule = effective_lr_schedule(0.5, like="sgd")
      >>> print(schedule(0, jnp.array([1.0, 2.0])))
      [0.5 2. ]

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, definition 1,
      https://arxiv.org/abs/2407.01800
    """
    check_learning_rate(effective_rate)
    check_like(like)

    def schedule(count: Any, growth: Any) -> jax.Array:
        rate = effective_rate(count) if callable(effective_rate) else effective_rate
        growth = wide(growth)
        return jnp.asarray(rate, growth.dtype) * growth_factor(growth, like)

    return schedule


def scale_by_effective_lr(
    effective_rate: optax.ScalarOrSchedule,
    *,
    like: Like = "adam",
    radius: Any = "init",
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiply by the learning rate that gives each weight an intended effective rate, whatever its norm.

    .. math:: u' = - \tilde\eta_t \, (\lVert w \rVert / r)^p \, u, \qquad p = 1 \;\text{(adam)}, \; 2 \;\text{(sgd)}

    In place of `optax.scale_by_learning_rate`. The weights stay free, and turn as projected ones do under
    `nap` with the learning rate :math:`\tilde\eta_t`: exactly for SGD; for Adam with `rescale_moments=True` there.
    Norms keep growing, by a constant factor per step; float32 overflows after some :math:`10^4` steps of relative size
    0.1. What the mask leaves out is multiplied by :math:`- \tilde\eta_t`.

    Args:
      effective_rate: :math:`\tilde\eta`, a number or a schedule of the step.
      like: how updates scale with the gradient, as in `effective_learning_rates`.
      radius: the reference norm, as in `project_weights`.
      axes: the axes of one norm, as in `project_weights`.
      mask: which weights, as in `project_weights`.

    Returns:
      A transformation; its state holds the reference norms and the step.

    Raises:
      ValueError: a negative rate; an unknown `like`; otherwise as for `project_weights`.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import scale_by_effective_lr
      >>> tx = scale_by_effective_lr(0.5, mask=True)
      >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> state = tx.init(params)
      >>> updates, _ = tx.update({"kernel": jnp.array([[1.0, 0.0]])}, state, {"kernel": 3 * params["kernel"]})
      >>> updates["kernel"].tolist()
      [[-1.5, -0.0]]

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, definition 1,
      https://arxiv.org/abs/2407.01800
    """
    # One schedule for all: the factor of the norm per weight here, the rate and the sign by optax.
    relative = effective_lr_schedule(1.0, like=like)
    check_learning_rate(effective_rate)

    def leaf(p: jax.Array, u: jax.Array, r: jax.Array, reduced: Axes, count: jax.Array) -> jax.Array:
        p, u = wide(p), wide(u).astype(wide(p).dtype)
        length = norm(p, reduced)
        known = (r > 0) & (length > 0)
        growth = jnp.where(known, length / jnp.where(known, r, 1).astype(length.dtype), 1)
        return u * spread(relative(count, growth), reduced)

    def rule(weights: Any, updates: Any, radii: Any, reduced: Any, count: jax.Array) -> dict[str, jax.Array]:
        return {path: leaf(weights[path], u, radii[path], reduced[path], count) for path, u in updates.items()}

    growth = with_radii("scale_by_effective_lr", rule, radius, axes, mask)
    return optax.with_extra_args_support(optax.chain(growth, optax.scale_by_learning_rate(effective_rate)))


def implicit_schedule(
    *,
    like: Like = "adam",
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Give projected weights the learning-rate decay that the growth of their norm would have caused.

    With :math:`f_t` the norm that the free twin has by now, :math:`f_0 = \lVert w_0 \rVert`,

    .. math:: u' = u \, (\lVert w \rVert / f_t)^p, \qquad f_{t+1} = f_t \, \lVert w + u' \rVert / \lVert w \rVert

    The projected network then is the exact twin of the free one: the same functions, directions and effective rates,
    for scale-invariant weights. That makes it the control of an experiment: what changes when this is left out
    is what the implicit schedule did. Place it after the learning rate and before the projection:
    `nap(optax.chain(optax.adam(rate), implicit_schedule()), rescale_moments=True)`; plain SGD needs no rescaling.
    For an explicit decay of the same form use `norm_growth_schedule`.

    Args:
      like: how updates scale with the gradient: `"adam"` (:math:`p = 1`) or `"sgd"` (:math:`p = 2`).
      axes: the axes of one norm, as in `project_weights`.
      mask: which weights, as in `project_weights`; those that are projected.

    Returns:
      A transformation with state `ImplicitScheduleState(count, twin_norms)`.

    Raises:
      ValueError: an unknown `like`; otherwise as for `project_weights`.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import implicit_schedule
      >>> tx = implicit_schedule(mask=True)
      >>> params = {"kernel": jnp.array([[3.0, 0.0]])}
      >>> _, state = tx.update({"kernel": jnp.array([[0.0, 4.0]])}, tx.init(params), params)
      >>> state.twin_norms
      {'kernel': Array(5., dtype=float32)}

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, section 4.1,
      https://arxiv.org/abs/2407.01800
    """
    check_like(like)

    def leaf(p: jax.Array, u: jax.Array, twin: jax.Array, reduced: Axes) -> tuple[jax.Array, jax.Array]:
        p, u = wide(p), wide(u).astype(wide(p).dtype)
        length = norm(p, reduced)
        known = (twin > 0) & (length > 0)
        scale = jnp.where(known, twin.astype(length.dtype) / jnp.where(known, length, 1), 1)
        moved = u / spread(growth_factor(scale, like), reduced)
        return moved, jnp.where(known, scale * norm(p + moved, reduced), twin.astype(length.dtype))

    def init(params: Any) -> ImplicitScheduleState:
        chosen = selection(params, axes, mask, "implicit_schedule")
        return ImplicitScheduleState(jnp.zeros([], jnp.int32), initial_radii(chosen, "init"))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ImplicitScheduleState]:
        del extra
        chosen, steps = selection(params, axes, mask, "implicit_schedule"), flatten(updates)
        check_stored(state.twin_norms, chosen)
        both = {
            path: leaf(chosen.leaves[path], u, state.twin_norms[path], chosen.axes[path])
            for path, u in present(steps.leaves, chosen.leaves).items()
        }
        norms = {**state.twin_norms, **{path: f for path, (_, f) in both.items()}}
        return steps.replace({path: u for path, (u, _) in both.items()}), ImplicitScheduleState(
            next_count(state.count), norms
        )

    return optax.GradientTransformationExtraArgs(init, update)
