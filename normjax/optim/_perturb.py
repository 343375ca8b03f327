"""Shrink-and-perturb: weights drawn towards zero and towards fresh noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import check_every, due_after, is_traced, next_count, on_schedule, require_params, wide
from normjax.optim._masks import float_leaves, select
from normjax.optim._paths import flatten
from normjax.optim._radii import present

Draw = Callable[[jax.Array, str, jax.Array], jax.Array]


class ShrinkAndPerturbState(NamedTuple):
    """Steps taken (int32)."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def _draws(noise: float | Draw) -> Draw:
    if callable(noise):
        return noise
    if not is_traced(noise) and not noise >= 0:
        raise ValueError(f"noise is a standard deviation and must not be negative, got {noise!r}.")
    return lambda key, path, leaf: noise * jax.random.normal(key, leaf.shape, wide(leaf).dtype)


def shrink_and_perturb(
    key: jax.Array,
    shrink: float = 0.4,
    noise: float | Draw = 0.1,
    *,
    every_k: Any = 1,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink parameters and add noise after every k-th step, to warm-start without losing plasticity.

    .. math:: w' = \lambda (w + u) + \epsilon, \qquad \epsilon \sim \mathcal{N}(0, \sigma^2)

    Place it after the learning rate and, if weights are projected, before the projection, which keeps the radius: of
    scale-invariant weights only the direction is perturbed, by about :math:`\sigma \sqrt{n} / \lambda \lVert w \rVert`
    radians for :math:`n` entries. The noise of step t is drawn from `fold_in(key, t)`: a restored run repeats it.

    Args:
      key: JAX random key.
      shrink: :math:`\lambda` in [0, 1]; 1 only adds noise, 0 starts afresh from it.
      noise: :math:`\sigma`; or `noise(key, path, weight)`, an array of the weight's shape. Towards a new
        initialisation :math:`\phi`, as :math:`\lambda w + (1 - \lambda) \phi`:
        `lambda key, path, w: 0.6 * initializer(key, w.shape)`.
      every_k: act after every `k`-th update only; the paper's use, once per batch of new data, is a large one.
      mask: which leaves, as in `project_weights`; `None` is every floating-point leaf.

    Returns:
      A transformation with state `ShrinkAndPerturbState(count)`.

    Raises:
      ValueError: no `params` in `update`; `shrink` outside [0, 1]; negative noise, or an array of another shape;
        `every_k < 1`; a mask that selects nothing.
      TypeError: a selected leaf is not floating point, or `every_k` is no integer.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from normjax.optim import shrink_and_perturb
      >>> tx = optax.chain(optax.sgd(0.0), shrink_and_perturb(jax.random.key(0), 0.5, noise=0.0, every_k=2))
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params["kernel"].tolist()
      [[0.25, 0.25]]

    References:
      Ash, Adams, On warm-starting neural network training, 2019, https://arxiv.org/abs/1910.08475
    """
    check_every(every_k, "every_k")
    if not is_traced(shrink) and not 0 <= shrink <= 1:
        raise ValueError(f"shrink is the share of the weights that stays, in [0, 1], got {shrink!r}.")
    draw = _draws(noise)

    def perturbed(key: jax.Array, path: str, p: jax.Array, u: jax.Array) -> jax.Array:
        fresh = jnp.asarray(draw(key, path, p))
        if fresh.shape != p.shape:
            raise ValueError(f"noise for {path!r} has shape {fresh.shape}, expected {p.shape}.")
        p, u = wide(p), wide(u).astype(wide(p).dtype)
        return jnp.asarray(shrink, p.dtype) * (p + u) + fresh.astype(p.dtype) - p

    def init(params: Any) -> ShrinkAndPerturbState:
        select(mask, params, require_params(params), float_leaves, "shrink_and_perturb")
        return ShrinkAndPerturbState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ShrinkAndPerturbState]:
        del extra
        selected = select(mask, params, require_params(params), float_leaves, "shrink_and_perturb")
        steps, now = flatten(updates), jax.random.fold_in(key, state.count)
        moving = present(steps.leaves, selected)
        places = {path: index for index, path in enumerate(sorted(selected))}

        def act() -> dict[str, jax.Array]:
            keys = {path: jax.random.fold_in(now, places[path]) for path in moving}
            return {path: perturbed(keys[path], path, selected[path], u) for path, u in moving.items()}

        def keep() -> dict[str, jax.Array]:
            return {path: wide(u).astype(wide(selected[path]).dtype) for path, u in moving.items()}

        new = on_schedule(due_after(state.count, every_k), act, keep)
        return steps.replace(new), ShrinkAndPerturbState(next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
