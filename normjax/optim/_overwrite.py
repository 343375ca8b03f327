"""An optax wrapper for parameters whose gradient is their new value."""

from typing import Any

import jax
import optax

from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.optim._paths import is_box, path_string


def _written(path: Any) -> bool:
    return any(path_string((key,)) == OVERWRITE_WITH_GRADIENT for key in path)


def _hide(tree: Any) -> Any:
    def hide(path, leaf):
        return optax.MaskedNode() if _written(path) else leaf

    return jax.tree_util.tree_map_with_path(hide, tree, is_leaf=is_box)


def overwrite_with_gradient(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, for parameters that include state written by the backward pass.

    Leaves anywhere under a key `"_overwrite_with_gradient"` are hidden from `inner`: no moments, no decay, no
    projection, no share in a global norm. Their update is :math:`u = g - p`, so that `optax.apply_updates` replaces
    them by their cotangent :math:`g`. It is exact where :math:`p = 0` or :math:`1/2 \le g/p \le 2` (evaluation has
    :math:`g = p`); elsewhere the two roundings err by at most :math:`2\epsilon \max(|p|, |g|)`, with the
    machine epsilon of the leaf's dtype. A value that is not finite stays so. Flax's `TrainState` with the collection
    of that name (see `normjax.linen.Norm`) needs no wrapper and is exact.

    Put it outermost: `overwrite_with_gradient(nap(adam))`, `overwrite_with_gradient(optax.chain(...))`. With
    `optax.MultiSteps` inside, this state moves with every micro-batch, as the forward statistics do; around the
    wrapper, MultiSteps would average new values that each started from the same old one, and fill every slot of a
    window with a fraction of a batch. Gradients must be averaged over devices, not summed.

    Args:
      inner: The optimizer, including its learning rate. Masks and trees of options that it was given name no hidden
        leaf.

    Returns:
      A transformation whose state is that of `inner`; extra arguments of `update` reach `inner`.

    Raises:
      ValueError: No `params` in `update`.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj, optax
      >>> norm, x = nj.power_norm(), jnp.array([[1.0, 4.0], [-2.0, 3.0]])
      >>> params, state = norm.init(None, x)
      >>> tx = nj.overwrite_with_gradient(optax.sgd(0.1))
      >>> opt_state = tx.init(params)
      >>> def loss(params, state):
      ...     y, state = norm.apply(params, state, x, train=True)
      ...     return jnp.sum(y**3), state
      >>> for _ in range(2):
      ...     grads, state = jax.grad(loss, has_aux=True)(params, state)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(state["count"], params["_overwrite_with_gradient"]["ema_gz"].shape)
      2 (2,)
    """
    optimizer = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return optimizer.init(_hide(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "overwrite_with_gradient needs the current parameters to overwrite them, but got params=None: call "
                "update(updates, state, params)."
            )
        moved, state = optimizer.update(_hide(updates), state, _hide(params), **extra)

        def overwrite(path, gradient, parameter, update):
            return jax.tree.map(lambda g, p: g - p, gradient, parameter) if _written(path) else update

        return jax.tree_util.tree_map_with_path(overwrite, updates, params, moved, is_leaf=is_box), state

    return optax.GradientTransformationExtraArgs(init, update)
