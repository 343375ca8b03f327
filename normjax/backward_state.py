r"""State that the backward pass writes: it enters as a parameter, and its cotangent is its new value.

PowerNorm and Unified Normalization keep statistics of gradients. A pure function cannot write them down while its
gradient is taken, so they live inside the parameters, under the key `"_overwrite_with_gradient"` that Flax uses for
fp8 scales, and whoever applies the gradients overwrites them: `overwrite_with_gradient` around any optax optimizer,
Flax's `TrainState.apply_gradients` as it is, and `nnx.Optimizer` with the same wrapper. Each has a recipe in its
docstring: `normjax.overwrite_with_gradient`, `normjax.linen.Norm`, `normjax.nnx.Norm`.

JAX adds the cotangents of everything that an array was used for, and sums are not what these values mean:

- A layer that is applied twice per step, or `vmap` over examples inside the loss, gives the sum of the new values. Give
  each application its own entry, and name the mapped axis in the norm (`axis_name=`), which makes it one application.
- Gradients that are *averaged* over micro-batches or devices average the new values, which is what one wants.
  Gradients that are summed must be divided by their number first. `optax.MultiSteps` goes inside
  `overwrite_with_gradient`, so that the state moves with each micro-batch as the forward statistics do.
- A norm whose output does not reach the loss has the cotangent zero, and zero would be the new value. This includes the
  branch of a `lax.cond` that does not call it: call `keep_in_backward` there.
- The statistics are in units of the gradient: a loss scale scales them.
- Under `jax.checkpoint` nothing changes: counters are state of the forward pass, whose recomputation is discarded, and
  the backward pass runs once.
- Under `shard_map` with `axis_name=` the means are merged over devices and the new value is the same on all of them.
  With `check_vma=False` take gradients inside the mapped function; outside, JAX would add up the devices' values.

Forward-mode derivatives do not exist where a backward pass is defined by hand. Evaluation with parameters that lack the
entry computes the same output and has every derivative.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

OVERWRITE_WITH_GRADIENT = "_overwrite_with_gradient"

Rule = Callable[[jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]


def write_in_backward(rule: Rule, x: jax.Array, value: jax.Array, written: Any, saved: Any = None) -> jax.Array:
    r"""Returns `value`, with a backward pass that is `rule` and writes `written`.

    Args:
      rule: `rule(cotangent, value, written, saved) -> (cotangent of x, new written)`. The second result has the
        structure, shapes and dtypes of `written`. Arrays reach it through `saved`, not by closing over them.
      x: What `value` was computed from; it gets the first result as its cotangent.
      value: The output.
      written: State that the backward pass reads and writes, a tree of floating arrays.
      saved: A tree of arrays for the rule; no gradient flows to it, nor to `value`.

    Returns:
      `value`.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> def rule(g, value, written, saved):
      ...     return 2 * g, {"mean": 0.5 * written["mean"] + 0.5 * g.mean()}
      >>> doubled = lambda x, written: nj.write_in_backward(rule, x, 2 * x, written).sum()
      >>> print(jax.grad(doubled, argnums=(0, 1))(jnp.ones(2), {"mean": jnp.zeros(())}))
      (Array([2., 2.], dtype=float32), {'mean': Array(0.5, dtype=float32)})
    """
    return _write(rule, x, jax.lax.stop_gradient(value), written, jax.lax.stop_gradient(saved))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _write(rule, x, value, written, saved):
    del rule, x, written, saved
    return value


def _write_forward(rule, x, value, written, saved):
    del rule, x
    return value, (value, written, saved)


def _write_backward(rule, residuals, cotangent):
    value, written, saved = residuals
    x_cotangent, new = rule(cotangent, value, written, saved)
    return x_cotangent, None, new, None


_write.defvjp(_write_forward, _write_backward)


def keep_in_backward(value: jax.Array, written: Any) -> jax.Array:
    """Returns `value`, with a backward pass that writes `written` as it is instead of zero.

    Args:
      value: Any output that reaches the loss; its gradient is unchanged.
      written: State that the backward pass would write elsewhere, e.g. in the other branch of a `lax.cond`; `None` if
        there is none.

    Returns:
      `value`.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> print(jax.grad(lambda x, s: nj.keep_in_backward(x, s).sum(), argnums=1)(jnp.ones(3), jnp.full(2, 7.0)))
      [7. 7.]
    """
    return value if written is None else _keep(value, written)


@jax.custom_vjp
def _keep(value, written):
    del written
    return value


_keep.defvjp(lambda value, written: (value, written), lambda written, cotangent: (cotangent, written))


def split_written(params: Any) -> tuple[Any, dict[str, Any]]:
    """Returns parameters without what the backward pass writes, and that by the names of the members it belongs to."""
    if not isinstance(params, Mapping):
        return params, {}
    written = dict(params.get(OVERWRITE_WITH_GRADIENT, {}))
    rest = {}
    for name, value in params.items():
        if name == OVERWRITE_WITH_GRADIENT:
            continue
        rest[name], below = split_written(value)
        if below:
            written[name] = below
    return rest, written


def join_written(like: Any, params: Any, written: Mapping[str, Any]) -> Any:
    """The inverse of `split_written`; `like` has the structure of the result, entries missing in `written` stay out."""
    if not isinstance(like, Mapping):
        return params
    below = {name: v for name, v in like.items() if name != OVERWRITE_WITH_GRADIENT}
    joined = {name: join_written(v, params[name], written.get(name, {})) for name, v in below.items()}
    own = {name: written[name] for name in like.get(OVERWRITE_WITH_GRADIENT, {}) if name in written}
    return {**joined, OVERWRITE_WITH_GRADIENT: own} if own else joined


def require_written(params: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns the entry that training writes, or raises `ValueError` where it is missing."""
    written = params.get(OVERWRITE_WITH_GRADIENT)
    if written is None or set(written) != set(names):
        found = sorted(params) if written is None else sorted(written)
        raise ValueError(
            f"training writes {list(names)} under {OVERWRITE_WITH_GRADIENT!r} in the parameters, got {found}; pass "
            "what init returned there (in linen the collection of that name), or evaluate with train=False."
        )
    return dict(written)
