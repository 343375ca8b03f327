"""Telemetry of effective learning rates: how far each weight tensor turns, relative to its norm."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import (
    Axes,
    at_step,
    check_every,
    check_shapes,
    copy,
    is_traced,
    next_count,
    norm,
    on_schedule,
    require_params,
    resolve_axes,
    wide,
)
from normjax.optim._masks import float_matrices, select
from normjax.optim._paths import check_same_paths, flatten
from normjax.optim._radii import present

UNKNOWN = -1.0  # NaN would say it better, but would stop every run under jax_debug_nans


class WeightMotion(NamedTuple):
    """One step of one weight tensor: float32 scalars, or one number per slice where `axes` were given.

    Attributes:
      norm: norm of the weights before the step.
      growth: that norm over the reference norm (the initial one; under `nap` the radius); 1 if the reference
        is zero.
      relative_update: norm of the update over `norm`; 0 for zero weights.
      rotation: angle in radians between the weights before and after the step, to float32 relative accuracy
        however small; for a step almost along the weights, to 5e-4 of `relative_update`.
    """

    norm: jax.Array
    growth: jax.Array
    relative_update: jax.Array
    rotation: jax.Array


class EffectiveLRState(NamedTuple):
    """Nominal learning rate of the last measured step (negative if unknown), and its motion by path."""

    learning_rate: jax.Array
    motion: dict[str, WeightMotion]


class TrackEffectiveLRState(NamedTuple):
    """Steps taken (int32), reference norms by path, and the last measurement."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    reference: dict[str, jax.Array]
    tracker: EffectiveLRState


def _safe(length: jax.Array) -> jax.Array:
    return jnp.where(length > 0, length, 1)


def _growth(length: jax.Array, reference: jax.Array) -> jax.Array:
    return jnp.where(reference > 0, length / _safe(reference).astype(length.dtype), 1).astype(length.dtype)


def _measure(p: jax.Array, u: jax.Array, reference: jax.Array, axes: Axes) -> WeightMotion:
    p, u = wide(p), wide(u).astype(wide(p).dtype)
    length, size = norm(p, axes), norm(u, axes)
    along = jnp.sum(p * u, axis=axes) / _safe(length)
    # Three sums that do not depend on each other: one pass, and one round of all-reduces for sharded weights.
    # Subtracting w's share from u before the norm is exact for radial steps too, but costs a second round.
    across = jnp.sqrt(jnp.maximum((size - along) * (size + along), 0))
    return WeightMotion(
        norm=length,
        growth=_growth(length, reference),
        relative_update=jnp.where(length > 0, size / _safe(length), 0),
        rotation=jnp.arctan2(across, length + along),
    )


def start_tracking(reference: Mapping[str, jax.Array], norms: Mapping[str, jax.Array]) -> EffectiveLRState:
    """The state before any step: nothing moved, no rate known. Shares no buffer with its arguments."""

    def still(length: jax.Array, r: jax.Array) -> WeightMotion:
        return WeightMotion(copy(length), _growth(length, r), jnp.zeros_like(length), jnp.zeros_like(length))

    return EffectiveLRState(
        jnp.asarray(UNKNOWN, dtype=float), {path: still(norms[path], r) for path, r in reference.items()}
    )


def track(
    tracker: EffectiveLRState,
    params: Mapping[str, jax.Array],
    updates: Mapping[str, jax.Array],
    reference: Mapping[str, jax.Array],
    axes: Mapping[str, Axes],
    rate: jax.Array,
    due: jax.Array | None,
) -> EffectiveLRState:
    """The measurement of this step where due, else the previous one. Leaves without an update keep theirs."""

    def measure() -> EffectiveLRState:
        new = {path: _measure(params[path], u, reference[path], axes[path]) for path, u in updates.items()}
        return EffectiveLRState(rate, {**tracker.motion, **new})

    return on_schedule(due, measure, lambda: tracker)


def track_due(count: jax.Array, every: Any) -> jax.Array | None:
    """Steps 0, k, 2k, ... are measured, so that the first step is; `None` means all of them."""
    return None if isinstance(every, int) and every == 1 else count % every == 0


def injected_rates(state: Any) -> list[tuple[tuple[Any, ...], jax.Array]]:
    """Learning rates that `optax.inject_hyperparams` keeps in a state, with their places."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    wanted = ".hyperparams['learning_rate']"
    return [(keys, leaf) for keys, leaf in leaves if jax.tree_util.keystr(keys).endswith(wanted)]


def current_rate(learning_rate: Any, count: jax.Array, extra: Mapping[str, Any], inner_state: Any = ()) -> jax.Array:
    """Nominal rate of this step: the extra argument, else the option, else one in `inner_state`."""
    given = extra.get("learning_rate", learning_rate)
    found = injected_rates(inner_state)
    if given is None and len(found) == 1:
        given = found[0][1]
    return at_step(UNKNOWN if given is None else given, count)


def check_learning_rate(learning_rate: Any) -> None:
    """Raise unless it is absent, a schedule, or a number that is not negative."""
    if learning_rate is None or callable(learning_rate) or is_traced(learning_rate):
        return
    if not float(learning_rate) >= 0:
        raise ValueError(f"learning_rate must not be negative, got {learning_rate!r}; None means it is not known.")


def track_effective_lr(
    learning_rate: Any = None,
    *,
    every_k: Any = 1,
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measure norms, rotation and effective learning rates; the updates pass through unchanged.

    For a function that does not depend on the scale of :math:`w`, a step with learning rate :math:`\eta`
    acts as one with :math:`\eta (r / \lVert w \rVert)^2` on weights of norm :math:`r` if updates scale with
    the gradient (SGD), and with :math:`\eta \, r / \lVert w \rVert` if they do not (Adam). What a step
    really did is its rotation, :math:`\operatorname{atan2}(\lVert u_\perp \rVert, \lVert w \rVert +
    u_\parallel)`.

    Place it last, where updates are final. `nap` contains it. Read it with
    `effective_learning_rates(opt_state)` and `weight_motion(opt_state)`.

    Args:
      learning_rate: nominal learning rate or schedule. It can instead be passed to `update` as an extra
        argument `learning_rate=`; with `None` and neither, `effective_learning_rates` looks for one injected
        nearby by `optax.inject_hyperparams`.
      every_k: measure steps 0, k, 2k, ...; in between the last measurement stays.
      axes: as in `project_weights`: one number per slice instead of per leaf.
      mask: which leaves, as in `project_weights`; `None` is every floating-point leaf of two or more
        dimensions.

    Returns:
      A transformation with state `TrackEffectiveLRState(count, reference, tracker)`.

    Raises:
      ValueError: no `params` in `update`; `every_k < 1`; a negative rate; a mask that selects nothing;
        `axes` that do not fit; a restored state that belongs to other parameters.
      TypeError: a selected leaf is not floating point, or `every_k` is no integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import effective_learning_rates, track_effective_lr, weight_motion
      >>> tx = optax.chain(optax.sgd(0.5), track_effective_lr(0.5))
      >>> params = {"w": jnp.array([[3.0, 4.0]])}
      >>> updates, state = tx.update({"w": jnp.array([[8.0, -6.0]])}, tx.init(params), params)
      >>> {name: float(x) for name, x in weight_motion(state)["w"]._asdict().items()}
      {'norm': 5.0, 'growth': 1.0, 'relative_update': 1.0, 'rotation': 0.7853981852531433}
      >>> effective_learning_rates(state)
      {'w': Array(0.5, dtype=float32)}

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, definition 1,
      https://arxiv.org/abs/2407.01800
    """
    check_every(every_k, "every_k")
    check_learning_rate(learning_rate)

    def init(params: Any) -> TrackEffectiveLRState:
        flat = flatten(params)
        selected = select(mask, params, flat, float_matrices, "track_effective_lr")
        reduced = resolve_axes(axes, selected, flat.leaves)
        norms = {path: norm(wide(leaf), reduced[path]) for path, leaf in selected.items()}
        return TrackEffectiveLRState(jnp.zeros([], jnp.int32), norms, start_tracking(norms, norms))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, TrackEffectiveLRState]:
        flat, steps = require_params(params), flatten(updates)
        selected = select(mask, params, flat, float_matrices, "track_effective_lr")
        reduced = resolve_axes(axes, selected, flat.leaves)
        check_same_paths(state.reference, selected, "The reference norms")
        check_shapes(state.reference, selected, reduced, "The reference norm")
        tracker = track(
            state.tracker,
            selected,
            present(steps.leaves, selected),
            state.reference,
            reduced,
            current_rate(learning_rate, state.count, extra),
            track_due(state.count, every_k),
        )
        return updates, TrackEffectiveLRState(next_count(state.count), state.reference, tracker)

    return optax.GradientTransformationExtraArgs(init, update)
