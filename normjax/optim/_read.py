"""Reading telemetry back from any state that contains a tracker."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from normjax.optim._leaves import is_traced
from normjax.optim._paths import is_box, listing
from normjax.optim._track import EffectiveLRState, WeightMotion, injected_rates


def _is_tracker(node: Any) -> bool:
    return isinstance(node, EffectiveLRState)


def _unbox(node: Any) -> Any:
    content = jax.tree.leaves(node) if is_box(node) else [node]
    return content[0] if content else None


def _trackers(opt_state: Any) -> list[tuple[tuple[Any, ...], EffectiveLRState]]:
    leaves = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_is_tracker)[0]
    found = [(keys, node) for keys, node in leaves if _is_tracker(node)]
    if not found:
        raise ValueError(
            f"No tracker in the optimizer state (a {type(opt_state).__name__}): effective learning rates are measured "
            "by nap(...) or track_effective_lr(...), which must be part of the optimizer. A checkpoint restored "
            "without a target is plain dictionaries; restore it into the state that init returns."
        )
    paths = [path for _, tracker in found for path in tracker.motion]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise ValueError(f"Several trackers in the optimizer state follow {listing(twice)}; pass the state of one.")
    return found


def _common(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _nearest_rate(keys: tuple[Any, ...], injected: list[tuple[tuple[Any, ...], jax.Array]]) -> jax.Array | None:
    """The injected rate that shares the longest way into the state with the tracker, unless two tie."""
    if not injected:
        return None
    closest = max(_common(keys, other) for other, _ in injected)
    rates = [rate for other, rate in injected if _common(keys, other) == closest]
    return rates[0] if len(rates) == 1 else None


def _nominal_rate(tracker: EffectiveLRState, injected: jax.Array | None) -> jax.Array:
    rate = jnp.asarray(tracker.learning_rate)
    if injected is not None:
        return jnp.where(rate < 0, jnp.asarray(injected, dtype=rate.dtype), rate)
    if not is_traced(rate) and np.any(np.asarray(rate) < 0):
        raise ValueError(
            "The learning rate is not known to the tracker, or no step has been taken yet: pass learning_rate= (a "
            "number or schedule) to nap or track_effective_lr, pass learning_rate= to update, or build the optimizer "
            "with optax.inject_hyperparams. weight_motion(opt_state) needs none."
        )
    return rate


def effective_learning_rates(opt_state: Any, *, like: Literal["adam", "sgd"] = "adam") -> dict[str, jax.Array]:
    r"""Nominal effective learning rate of every tracked weight, from any state that contains a tracker.

    .. math:: \eta \, r / \lVert w \rVert \;\text{(adam)}, \qquad \eta \, (r / \lVert w \rVert)^2
    \;\text{(sgd)}

    with the values of the last measured step. Constant under `nap` with a constant learning rate.

    Args:
      opt_state: the state of a transformation that contains `nap` or `track_effective_lr` at any depth
        (`chain`, `MultiSteps`, `inject_hyperparams`, `masked`, `partition`, ...), or a train state or nnx
        optimizer around it.
      like: how updates scale with the gradient: `"adam"` for those whose size does not depend on it (Adam,
        RMSProp, Lion, Muon, ...), `"sgd"` for those proportional to it.

    Returns:
      `{path: rate}`, scalars or one rate per slice; a leading axis of vmapped seeds stays in front.

    Raises:
      ValueError: no tracker in the state, two trackers of one path, an unknown `like`, or no known learning
        rate.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import effective_learning_rates, track_effective_lr
      >>> tx = optax.chain(optax.sgd(0.5), track_effective_lr(0.5))
      >>> params = {"w": jnp.array([[3.0, 4.0]])}
      >>> _, state = tx.update(params, tx.init(params), {"w": 2 * params["w"]})
      >>> effective_learning_rates(state, like="sgd")
      {'w': Array(0.125, dtype=float32)}
    """
    if like not in ("adam", "sgd"):
        raise ValueError(f'like is "adam" or "sgd", got {like!r}.')
    state = jax.tree.map(_unbox, opt_state, is_leaf=is_box)
    injected = injected_rates(state)
    rates = {}
    for keys, tracker in _trackers(state):
        rate = _nominal_rate(tracker, _nearest_rate(keys, injected))
        for path, motion in tracker.motion.items():
            growth = motion.growth if like == "adam" else jnp.square(motion.growth)
            aligned = rate.reshape(rate.shape + (1,) * (growth.ndim - rate.ndim))
            rates[path] = aligned.astype(growth.dtype) / growth
    return rates


def weight_motion(opt_state: Any) -> dict[str, WeightMotion]:
    """Norm, growth, relative update and rotation of every tracked weight in the last measured step.

    Args:
      opt_state: as for `effective_learning_rates`.

    Returns:
      `{path: WeightMotion}`.

    Raises:
      ValueError: no tracker in the state, or two trackers of one path.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import track_effective_lr, weight_motion
      >>> weight_motion(track_effective_lr().init({"w": jnp.array([[3.0, 4.0]])}))["w"].norm
      Array(5., dtype=float32)
    """
    state = jax.tree.map(_unbox, opt_state, is_leaf=is_box)
    return {path: motion for _, tracker in _trackers(state) for path, motion in tracker.motion.items()}
