"""Normalize-and-Project around any optax optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim import _affine
from normjax.optim._decay import initial_targets, pull
from normjax.optim._leaves import (
    Axes,
    at_step,
    check_every,
    check_rate,
    check_shapes,
    due_after,
    is_single_axes,
    next_count,
    norm,
    require_params,
    resolve_axes,
    resolve_radii,
    wide,
)
from normjax.optim._masks import hidden_weights, select
from normjax.optim._paths import FlatTree, check_same_paths, flatten
from normjax.optim._project import project_tree
from normjax.optim._radii import present
from normjax.optim._rescale import POWERS, require_moments
from normjax.optim._rescale import rescale_moments as divide_moments
from normjax.optim._track import (
    EffectiveLRState,
    check_learning_rate,
    current_rate,
    start_tracking,
    track,
    track_due,
)


class NapState(NamedTuple):
    """State of `nap`.

    Attributes:
      count: steps taken, int32.
      inner_state: state of the wrapped optimizer.
      radii: radius of every projected weight by path, float32; scalar or one per slice.
      affine: `{}` if scales and offsets are free, their initial values by path if decayed, their joint radii
        by module if projected jointly.
      tracker: last measurement, read by `effective_learning_rates` and `weight_motion`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: Any
    radii: dict[str, jax.Array]
    affine: dict[str, Any]
    tracker: EffectiveLRState


class _Plan(NamedTuple):
    """What the parameters' structure and the options decide at trace time."""

    params: FlatTree
    selected: dict[str, jax.Array]
    axes: dict[str, Axes]
    pairs: _affine.Pairs
    pair_axes: dict[str, Axes]

    def affine_keys(self, policy: str) -> list[str]:
        return [p for paths in self.pairs.values() for p in paths] if policy == "decay" else list(self.pairs)


def _check_policy(policy: str, rate: Any) -> None:
    if policy not in ("free", "decay", "joint"):
        raise ValueError(f'scale_offset is "free", "decay" or "joint", got {policy!r}.')
    if policy == "decay":
        if rate is None:
            raise ValueError('scale_offset="decay" needs rate=, the fraction of the distance removed per step.')
        check_rate(rate, "rate")
    elif rate is not None:
        raise ValueError(f'rate={rate!r} is for scale_offset="decay", got scale_offset={policy!r}.')


def nap(
    inner: optax.GradientTransformation,
    *,
    mask: Any | Callable[[Any], Any] | None = None,
    radius: Any = "init",
    every_k: Any = 1,
    axes: Any = None,
    scale_offset: Literal["free", "decay", "joint"] = "free",
    rate: Any = None,
    scale_offset_names: Sequence[str] = ("scale", "bias"),
    rescale_moments: bool | Mapping[str, int] = False,
    learning_rate: Any = None,
    track_every: Any = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Normalize-and-Project: any optimizer, with weights kept at their initial norms.

    After the step of `inner`, every selected weight returns to its radius, :math:`w \leftarrow r\,w / \lVert
    w \rVert`. The method's other half is the model's: normalize before every nonlinearity, drop biases that
    feed a norm, and leave the readout unprojected. For such weights the projection keeps the function and
    fixes the effective learning rate, which otherwise decays as norms grow. That decay was often useful:
    give `inner` an explicit schedule (`norm_growth_schedule`, `optax.linear_schedule`), a constant rate can
    be worse than none of this.

    Scales and offsets are those of modules that own nothing but leaves called `scale` and `bias`; the two of
    one module are a pair. `"free"`: the optimizer's alone. `"decay"`: pulled to their initial values, (1, 0)
    in a new network, :math:`s \leftarrow (1 - a)\,s + a\,s_0`, for any nonlinearity; long non-stationary
    training needs it. `"joint"`: each pair returns to its initial joint norm :math:`\sqrt{\lVert s \rVert^2
    + \lVert b \rVert^2}` (:math:`\sqrt d`), whenever weights are projected; this keeps the function only for
    homogeneous activations that feed another norm, and does nothing to scales stored as an offset from one
    (initial norm zero). Often better than all three: drop them in the model (`use_scale=False,
    use_bias=False`).

    Decoupled weight decay in `inner` multiplies the effective rate of projected weights by `1 / (1 - a)` and
    still acts on the rest. Keep averaging wrappers (`lookahead`, `schedule_free`) outside and know that
    averages leave the sphere. `nap` goes inside `optax.MultiSteps`. Prefer float32 weights: bfloat16 ones
    round small rotations away.

    Args:
      inner: the optimizer, including its learning rate.
      mask: projected weights, as in `project_weights`; `None` is `hidden_weights()`, which raises where it
        recognises no readout.
      radius: norms to return to, as in `project_weights`.
      every_k: project after every `k`-th update.
      axes: axes of one norm, as in `project_weights`. A tree, path-dict or callable also gives the axes of
        scales and offsets for `"joint"`; a single value does not.
      scale_offset: policy for scales and offsets of normalization layers.
      rate: with `"decay"`, the fraction :math:`a` of the distance removed per step, or a schedule.
      scale_offset_names: names of these leaves.
      rescale_moments: divide the optimizer's moments by the factor of each projection, as the gradient is at the new
        weights: `mu` and `trace` once, `nu`, `nu_max` and `sum_of_squares` twice. Makes the projected run the exact
        twin of a free run with the matching learning rates, and matters for large `every_k`. A mapping
        `{field: power}` replaces these; optax's adamax needs `{"mu": 1, "nu": 1}`.
      learning_rate: nominal rate or schedule for the telemetry only; not needed if `inner` is built with
        `optax.inject_hyperparams` or `update` gets `learning_rate=`.
      track_every: measure steps 0, k, 2k, ...: the update before its projection against the weights.

    Returns:
      A transformation with state `NapState`; extra arguments of `update` reach `inner`.

    Raises:
      ValueError: no `params` in `update`; `every_k` or `track_every` below 1; a radius, rate or learning
        rate out of range; a mask that selects nothing; options that do not fit the parameters or each other;
        no known moments to rescale; a restored state that belongs to other parameters.
      TypeError: a selected leaf is not floating point, or a step count is no integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import effective_learning_rates, hidden_weights, nap
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 1))}}
      >>> tx = nap(optax.adam(0.1), mask=hidden_weights(readout=("Dense_1",)), learning_rate=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {path: float(r) for path, r in state.radii.items()}
      {'Dense_0/kernel': 2.0}
      >>> effective_learning_rates(state)
      {'Dense_0/kernel': Array(0.1, dtype=float32)}

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024,
      https://arxiv.org/abs/2407.01800
    """
    check_every(every_k, "every_k")
    check_every(track_every, "track_every")
    check_learning_rate(learning_rate)
    _check_policy(scale_offset, rate)
    powers = POWERS if rescale_moments is True else dict(rescale_moments or {})
    optimizer = optax.with_extra_args_support(inner)

    def plan(params: Any) -> _Plan:
        flat = require_params(params)
        selected = select(mask, params, flat, hidden_weights(), "nap")
        reduced = resolve_axes(axes, selected, flat.leaves)
        if scale_offset == "free":
            return _Plan(flat, selected, reduced, {}, {})
        pairs = _affine.find_pairs(flat.leaves, scale_offset_names)
        _affine.require_pairs(pairs, flat.leaves, selected, scale_offset_names)
        joint = _affine.pair_axes(axes, is_single_axes(axes), pairs, flat.leaves) if scale_offset == "joint" else {}
        return _Plan(flat, selected, reduced, pairs, joint)

    def init_affine(params: Any, made: _Plan) -> dict[str, Any]:
        if scale_offset == "joint":
            return _affine.joint_norms(made.pairs, made.params.leaves, made.pair_axes)
        return initial_targets(params, dict.fromkeys(made.affine_keys(scale_offset)))

    def init(params: Any) -> NapState:
        made = plan(params)
        inner_state = optimizer.init(params)
        if powers:
            require_moments(inner_state, made.selected, powers)
        radii = resolve_radii(radius, made.selected, made.params.leaves, made.axes)
        norms = {path: norm(wide(leaf), made.axes[path]) for path, leaf in made.selected.items()}
        return NapState(
            jnp.zeros([], jnp.int32),
            inner_state,
            radii,
            init_affine(params, made),
            start_tracking(radii, norms),
        )

    def update_affine(state: NapState, made: _Plan, steps: Mapping[str, Any], due: Any) -> dict[str, jax.Array]:
        leaves = made.params.leaves
        if scale_offset == "joint":
            return _affine.project_pairs(made.pairs, leaves, steps, state.affine, made.pair_axes, due)
        targets = flatten(state.affine).leaves
        return {
            path: pull(leaves[path], u, targets[path], at_step(rate, state.count))
            for path, u in present(steps, targets).items()
        }

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, NapState]:
        made = plan(params)
        check_same_paths(state.radii, made.selected, "The stored radii")
        check_shapes(state.radii, made.selected, made.axes, "The stored radius")
        check_same_paths(state.affine, made.affine_keys(scale_offset), "The stored scales and offsets")
        updates, inner_state = optimizer.update(updates, state.inner_state, params, **extra)
        steps = flatten(updates)
        moving = present(steps.leaves, made.selected)
        due = due_after(state.count, every_k)
        projected, factors = project_tree(made.selected, moving, state.radii, made.axes, due)
        affine = update_affine(state, made, steps.leaves, due)
        tracker = track(
            state.tracker,
            made.selected,
            moving,
            state.radii,
            made.axes,
            current_rate(learning_rate, state.count, extra, inner_state),
            track_due(state.count, track_every),
        )
        if powers:
            inner_state = divide_moments(inner_state, factors, made.axes, powers)
        count = next_count(state.count)
        return steps.replace({**projected, **affine}), NapState(count, inner_state, state.radii, state.affine, tracker)

    return optax.GradientTransformationExtraArgs(init, update)
