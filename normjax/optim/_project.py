"""Projection of weights back to a stored norm, as the last transform of a chain."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import Axes, check_every, due_after, norm, on_schedule, spread, wide
from normjax.optim._radii import with_radii


def project_leaf(p: jax.Array, u: jax.Array, r: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """The update that lands on the sphere of radius `r`, and the factor per slice that took `p + u` there.

    A slice whose norm or radius is zero, or whose norm overflows, keeps its update: factor one.
    """
    p, u = wide(p), wide(u)
    moved = p + u.astype(p.dtype)
    # The norm of the sum itself: |p|² + 2<p,u> + |u|² loses the small terms that the projection is about.
    length = norm(moved, axes)
    valid = (r > 0) & (length > 0) & jnp.isfinite(length)
    factor = jnp.where(valid, r.astype(p.dtype) / jnp.where(valid, length, 1), 1)
    return moved * spread(factor, axes) - p, factor


def project_tree(
    params: Mapping[str, jax.Array],
    updates: Mapping[str, jax.Array],
    radii: Mapping[str, jax.Array],
    axes: Mapping[str, Axes],
    due: jax.Array | None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Updates and factors by path; where not due, the updates as they came and factors of one."""

    def project() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        both = {path: project_leaf(params[path], u, radii[path], axes[path]) for path, u in updates.items()}
        return {path: u for path, (u, _) in both.items()}, {path: c for path, (_, c) in both.items()}

    def keep() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        as_projected = {path: wide(u).astype(wide(params[path]).dtype) for path, u in updates.items()}
        return as_projected, {path: jnp.ones(radii[path].shape, u.dtype) for path, u in as_projected.items()}

    return on_schedule(due, project, keep)


def project_weights(
    radius: Any = "init",
    *,
    every_k: Any = 1,
    axes: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale weights to a fixed norm after every update (the projection of Normalize-and-Project).

    With :math:`w` the weights over the reduced axes, :math:`u` the incoming update and :math:`r` the stored
    radius,

    .. math:: u' = r \, \frac{w + u}{\lVert w + u \rVert} - w .

    Place it last in a chain, after the learning rate, as `optax.keep_params_nonnegative` is: whatever comes
    later leaves the sphere. With gradient accumulation it goes inside, `optax.MultiSteps(optax.chain(adam,
    project), k)`. For a function that does not depend on the scale of `w`, the projection changes the
    effective learning rate and nothing else; decoupled weight decay `a` before it therefore only multiplies
    that rate by `1 / (1 - a)`.

    Norms are summed in float32 (float64 for float64 weights) and updates of bfloat16 weights leave in
    float32, so that `optax.apply_updates` rounds once. Slices with zero norm or zero radius are left alone:
    a zero-initialised layer has no initial norm to return to. In `jax.shard_map` the norms are those of the
    local shard; use `jit` with shardings.

    Args:
      radius: the norms to return to, read once, in `init`. `"init"`: those of the parameters given to
        `init`, so after loading a checkpoint those of the loaded weights; a number; a tree or path-dict of
        these; or `radius(path, weight)`, such as `fan_radius(2.0)`. Arrays hold one number per slice.
      every_k: project after every `k`-th update only.
      axes: the axes summed over, never guessed. `None`: one norm per leaf. Otherwise one integer or tuple
        for all projected leaves, a tree or path-dict (leaves it does not name are reduced whole), or
        `axes(path, weight)`. Scanned layers `(L, in, out)`: `(1, 2)`; per head in `(D, H, d)`: `(0, 2)`; per
        neuron in `(in, out)`: `0`.
      mask: which leaves, as a (prefix) tree of booleans, a path-dict or a function of the parameters'
        structure. `None` is `hidden_weights()`: all weights but embeddings and readouts; raises where it
        recognises no readout.

    Returns:
      A transformation with state `RadiiState(count, radii)`; state and updates keep structure and
      dtypes.

    Raises:
      ValueError: no `params` in `update`; `every_k < 1`; a radius that is not positive; a mask that selects
        nothing; `radius` or `axes` that do not fit the parameters; a restored state that belongs to other
        parameters.
      TypeError: a selected leaf is not floating point, or `every_k` is no integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import project_weights
      >>> params = {"hidden": jnp.array([[3.0, 4.0]]), "head": jnp.array([[1.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), project_weights())
      >>> grads = {"hidden": jnp.array([[-40.0, 30.0]]), "head": jnp.array([[-10.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> {name: round(float(jnp.linalg.norm(w)), 3) for name, w in params.items()}
      {'head': 2.0, 'hidden': 5.0}

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024,
      https://arxiv.org/abs/2407.01800
    """
    check_every(every_k, "every_k")

    def rule(weights: Any, updates: Any, radii: Any, reduced: Any, count: jax.Array) -> dict[str, jax.Array]:
        return project_tree(weights, updates, radii, reduced, due_after(count, every_k))[0]

    return with_radii("project_weights", rule, radius, axes, mask)
