"""Rotation-controlled updates: every weight vector turns by a prescribed angle."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, at_step, next_count, norm, spread, wide
from normjax.optim._paths import flatten
from normjax.optim._project import project_leaf
from normjax.optim._radii import check_stored, initial_radii, present, selection
from normjax.optim._tangent import tangential
from normjax.optim._track import check_learning_rate


class RotateWeightsState(NamedTuple):
    """Steps taken (int32), radii by path, and running means of the squared tangential update by path."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    radii: dict[str, jax.Array]
    sizes: dict[str, jax.Array]


def _turn(
    p: jax.Array, u: jax.Array, r: jax.Array, size: jax.Array, axes: Axes, turn: jax.Array, keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The new update, and the new running mean. `turn` is the tangent of the angle, `keep` is (decay, 1 - decay^t)."""
    p, u = wide(p), wide(u).astype(wide(p).dtype)
    decay, correction = keep.astype(p.dtype)
    across = tangential(p, u, axes)
    size = decay * size.astype(p.dtype) + (1 - decay) * jnp.square(norm(across, axes))
    mean = jnp.sqrt(size / correction)
    r = r.astype(p.dtype)
    moves = (r > 0) & (mean > 0)
    factor = jnp.where(moves, turn.astype(p.dtype) * r / jnp.where(moves, mean, 1), 0)
    turned, _ = project_leaf(p, across * spread(factor, axes), r, axes)
    return jnp.where(spread(r > 0, axes), turned, u), size


def rotate_weights(
    rotation: Any,
    *,
    decay: float = 0.0,
    radius: Any = "init",
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turn every weight vector by a prescribed angle per step, at constant norm (Rotational Variants).

    With the tangential part of the update :math:`u_\perp = u - w \langle w, u \rangle / \lVert w \rVert^2`,

    .. math:: v_t = \beta v_{t-1} + (1 - \beta) \lVert u_\perp \rVert^2, \qquad
        w' = r \, \mathrm{N}\left(w + \rho \, r \, u_\perp / \sqrt{v_t / (1 - \beta^t)}\right)

    With :math:`\beta = 0` each step turns by exactly :math:`\arctan \rho`; with :math:`\beta > 0` by that on average,
    more where gradients agree. Weight decay and learning rate, which reach such a rotation after a transient, are
    replaced by the rotation they would settle at: `equilibrium_rotation`. Place it last, after a complete optimizer
    without weight decay on the selected weights; its learning rate then acts on the others only. The authors turn
    neurons, not matrices, and first subtract the mean from weights and updates; for that, centre the kernel
    (`normjax.centred_weight_norm`) in the model.

    Weights with radius zero follow the incoming update. An update without tangential part turns nothing.

    Args:
      rotation: :math:`\rho`, the tangent of the angle in radians, or a schedule of the step (int32, from 0).
      decay: :math:`\beta` in [0, 1); the authors' code has 0.9 by default.
      radius: as in `project_weights`.
      axes: the axes of one weight vector, as in `project_weights`; per neuron of kernels `(in, out)`: `0`.
      mask: which weights, as in `project_weights`.

    Returns:
      A transformation with state `RotateWeightsState(count, radii, sizes)`.

    Raises:
      ValueError: a negative rotation; `decay` outside [0, 1); otherwise as for `project_weights`.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import rotate_weights, track_effective_lr, weight_motion
      >>> tx = optax.chain(optax.adam(1e-3), rotate_weights(0.1, axes=0, mask=True), track_effective_lr(axes=0))
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 2.0]])}
      >>> _, state = tx.update({"kernel": jnp.array([[1.0, 9.0], [2.0, -1.0]])}, tx.init(params), params)
      >>> [f"{x:.4f}" for x in jnp.tan(weight_motion(state)["kernel"].rotation)]
      ['0.1000', '0.1000']

    References:
      Kosson, Messmer, Jaggi, Rotational equilibrium: how weight decay balances learning across neural networks, 2023,
      https://arxiv.org/abs/2305.17212
    """
    check_learning_rate(rotation)
    if not 0 <= decay < 1:
        raise ValueError(f"decay is the share of the running mean that stays, in [0, 1), got {decay!r}.")

    def init(params: Any) -> RotateWeightsState:
        chosen = selection(params, axes, mask, "rotate_weights")
        radii = initial_radii(chosen, radius)
        return RotateWeightsState(jnp.zeros([], jnp.int32), radii, {k: jnp.zeros_like(r) for k, r in radii.items()})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, RotateWeightsState]:
        del extra
        chosen, steps = selection(params, axes, mask, "rotate_weights"), flatten(updates)
        check_stored(state.radii, chosen)
        count = next_count(state.count)
        # The power is zero in float32 too early to matter; the correction is one by then.
        keep = jnp.stack([jnp.asarray(decay, float), 1 - jnp.asarray(decay, float) ** count.astype(float)])
        turn = at_step(rotation, state.count)
        both: Mapping[str, tuple[jax.Array, jax.Array]] = {
            path: _turn(chosen.leaves[path], u, state.radii[path], state.sizes[path], chosen.axes[path], turn, keep)
            for path, u in present(steps.leaves, chosen.leaves).items()
        }
        sizes = {**state.sizes, **{path: size.astype(state.sizes[path].dtype) for path, (_, size) in both.items()}}
        return steps.replace({path: u for path, (u, _) in both.items()}), RotateWeightsState(count, state.radii, sizes)

    return optax.GradientTransformationExtraArgs(init, update)


def equilibrium_rotation(
    learning_rate: float, weight_decay: float, *, momentum: float = 0.9, like: Literal["adam", "sgd"] = "adam"
) -> float:
    r"""Rotation per step at which weight decay and the growth of scale-invariant weights balance.

    .. math:: \rho = \sqrt{2 \eta \lambda \, \frac{1 - \beta_1}{1 + \beta_1}} \;\text{(AdamW)}, \qquad
        \rho = \sqrt{\frac{2 \eta \lambda}{1 + \mu}} \;\text{(SGD with momentum)}

    Args:
      learning_rate: :math:`\eta`.
      weight_decay: :math:`\lambda`; multiplied by the learning rate, as optax and torch do.
      momentum: :math:`\beta_1` of Adam, or :math:`\mu` of SGD.
      like: `"adam"` or `"sgd"`.

    Returns:
      The rotation in radians per step. For a schedule: `lambda step: equilibrium_rotation(rate(step), 0.1)`.

    Raises:
      ValueError: a negative rate or decay; a momentum outside [0, 1); an unknown `like`.

    Example:
      >>> from normjax.optim import equilibrium_rotation
      >>> round(float(equilibrium_rotation(1e-3, 0.1)), 5)
      0.00324

    References:
      Kosson, Messmer, Jaggi, Rotational equilibrium: how weight decay balances learning across neural networks, 2023,
      table 1, https://arxiv.org/abs/2305.17212
    """
    check_learning_rate(learning_rate)
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum lies in [0, 1), got {momentum!r}.")
    if like not in ("adam", "sgd"):
        raise ValueError(f'like is "adam" or "sgd", got {like!r}.')
    shared = (1 - momentum) / (1 + momentum) if like == "adam" else 1 / (1 + momentum)
    return (2 * learning_rate * weight_decay * shared) ** 0.5
