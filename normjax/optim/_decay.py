"""Decoupled pull of parameters towards their initial values (regenerative regularisation)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import at_step, check_rate, copy, next_count, require_params, wide
from normjax.optim._masks import float_leaves, select
from normjax.optim._paths import FlatTree, boxed_leaves, check_same_paths, flatten, listing, match
from normjax.optim._radii import present


class DecayTowardsInitState(NamedTuple):
    """Steps taken (int32) and the targets by path: copies in their own dtype and box, or scalars."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    targets: dict[str, Any]


def pull(p: jax.Array, u: jax.Array, target: jax.Array, rate: jax.Array) -> jax.Array:
    """The update that ends at `(1 - rate) (p + u) + rate target`."""
    p, u = wide(p), wide(u)
    return u + rate.astype(p.dtype) * (wide(target).astype(p.dtype) - p - u.astype(p.dtype))


def initial_targets(params: Any, paths: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the named leaves in their boxes: they do have the axes that sharding metadata names."""
    return {path: copy(node) for path, node in boxed_leaves(params).items() if path in paths}


def _given_targets(target: Any, selected: Mapping[str, jax.Array], flat: FlatTree) -> dict[str, Any]:
    values = match(target, flat.leaves, "target")
    missing = [path for path in selected if path not in values]
    if missing:
        raise ValueError(f"target gives no value for {listing(missing)}; add them, or leave them out of the mask.")
    for path, leaf in selected.items():
        if jnp.shape(values[path]) not in ((), leaf.shape):
            raise ValueError(
                f"target for {path!r} has shape {jnp.shape(values[path])}; expected a scalar or {leaf.shape}."
            )
    return {path: jnp.array(values[path], dtype=wide(leaf).dtype) for path, leaf in selected.items()}


def _target_mask(mask: Any, target: Any) -> Any:
    """A target for some leaves only selects those leaves, unless a mask says otherwise."""
    if mask is not None or isinstance(target, str):
        return mask
    return lambda params: (
        lambda flat: dict.fromkeys(flat, False) | dict.fromkeys(match(target, flat, "target"), True)
    )(flatten(params).leaves)


def decay_towards_init(
    rate: Any, mask: Any | Callable[[Any], Any] | None = None, target: Any = "init"
) -> optax.GradientTransformationExtraArgs:
    r"""Pull parameters towards their initial values by a fraction of the distance per step.

    .. math:: w_{t+1} = (1 - a_t)(w_t + u_t) + a_t \, w_0

    Decoupled L2-init: as decoupled weight decay is to an L2 penalty, so is this to the penalty
    :math:`\lVert w - w_0 \rVert^2` of regenerative regularisation: the pull does not pass through the
    optimizer's moments. Place it after the learning rate. With `target={"scale": 1.0, "bias": 0.0}` and a
    mask it is the scale/offset decay of Normalize-and-Project; do not apply it to projected weights after
    the projection.

    Args:
      rate: fraction of the distance removed per step, in [0, 1], or a schedule of the step (int32, from 0).
        For a pull proportional to the learning rate: `lambda step: strength * learning_rate(step)`.
      mask: which leaves, as in `project_weights`; `None` is every floating-point leaf, or those `target`
        names.
      target: `"init"`: the values given to `init`, of which a copy is stored; or a tree or path-dict of
        numbers and arrays, where a key may be the last name of a path (`"scale"`, `"bias"`).

    Returns:
      A transformation with state `DecayTowardsInitState(count, targets)`.

    Raises:
      ValueError: no `params` in `update`; a rate outside [0, 1]; a mask that selects nothing; a target that
        does not fit the parameters; a restored state that belongs to other parameters.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import decay_towards_init
      >>> tx = optax.chain(optax.sgd(1.0), decay_towards_init(0.25, target={"scale": 1.0, "bias": 0.0}))
      >>> params = {"scale": jnp.array([3.0]), "bias": jnp.array([4.0]), "kernel": jnp.array([[5.0]])}
      >>> grads = {"scale": jnp.zeros(1), "bias": jnp.zeros(1), "kernel": jnp.zeros((1, 1))}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> {name: w.tolist() for name, w in optax.apply_updates(params, updates).items()}
      {'bias': [3.0], 'kernel': [[5.0]], 'scale': [2.5]}

    References:
      Kumar, Marklund, Van Roy, Maintaining plasticity in continual learning via regenerative regularization,
      2023,
      https://arxiv.org/abs/2308.11958
    """
    check_rate(rate, "rate")
    if isinstance(target, str) and target != "init":
        raise ValueError(f'target is "init", a tree or a path-dict, got {target!r}.')
    chosen = _target_mask(mask, target)

    def init(params: Any) -> DecayTowardsInitState:
        flat = flatten(params)
        selected = select(chosen, params, flat, float_leaves, "decay_towards_init")
        by_init = isinstance(target, str)
        targets = initial_targets(params, selected) if by_init else _given_targets(target, selected, flat)
        return DecayTowardsInitState(jnp.zeros([], jnp.int32), targets)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, DecayTowardsInitState]:
        del extra
        flat, steps = require_params(params), flatten(updates)
        selected = select(chosen, params, flat, float_leaves, "decay_towards_init")
        check_same_paths(state.targets, selected, "The stored targets")
        targets, fraction = flatten(state.targets).leaves, at_step(rate, state.count)
        pulled = {
            path: pull(selected[path], u, targets[path], fraction)
            for path, u in present(steps.leaves, selected).items()
        }
        return steps.replace(pulled), state._replace(count=next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
