"""Arithmetic on one leaf (dtypes, axes, norms) and the option checks that all transforms share."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import AxisType, PartitionSpec

from normjax.optim._paths import FlatTree, flatten, listing, match

Axes = tuple[int, ...]


def wide(x: Any) -> jax.Array:
    """`x` in the dtype its norm is summed in: float32, or float64 where `x` is."""
    x = jnp.asarray(x)
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def norm(x: jax.Array, axes: Axes) -> jax.Array:
    """Euclidean norm over `axes`; the kept axes remain."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes))


def spread(per_slice: jax.Array, axes: Axes) -> jax.Array:
    """Put the reduced axes back with size one, to broadcast against the leaf."""
    return jnp.expand_dims(per_slice, axes)


def kept_shape(leaf: Any, axes: Axes) -> tuple[int, ...]:
    """Shape of one norm per slice."""
    return tuple(size for axis, size in enumerate(jnp.shape(leaf)) if axis not in axes)


def copy(tree: Any) -> Any:
    """Fresh buffers, so that state never aliases donated parameters."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def resharded(x: jax.Array, sharding: Any = None) -> jax.Array:
    """`x` replicated, or as `sharding` says, on a mesh with explicit axes; elsewhere the compiler decides."""
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return x
    return jax.sharding.reshard(x, PartitionSpec() if sharding is None else sharding)


def require_params(params: Any) -> FlatTree:
    """The parameters by path; raise if they were not passed to `update`."""
    if params is None:
        raise ValueError(
            "This transformation needs the current parameters, but got params=None: call "
            "update(updates, state, params)."
        )
    return flatten(params)


def is_float(x: Any) -> bool:
    """True for real floating-point leaves, bfloat16 included."""
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))


def require_float(leaves: Mapping[str, Any], what: str) -> None:
    """Raise if a selected leaf has no Euclidean norm in floating point."""
    wrong = {path: jnp.result_type(x) for path, x in leaves.items() if not is_float(x)}
    if wrong:
        path, dtype = next(iter(wrong.items()))
        raise TypeError(
            f"{what} works on floating-point leaves, but the mask selects {listing(wrong)} ({path!r} is {dtype}). "
            "Leave those out of the mask."
        )


def is_traced(x: Any) -> bool:
    """True where the value is unknown at trace time, so it cannot be checked."""
    return isinstance(x, Tracer)


def check_every(every: Any, what: str) -> None:
    """Raise unless `every` is a positive integer (or a traced one, as `inject_hyperparams` makes it)."""
    if is_traced(every):
        return
    try:
        value = operator.index(every)
    except TypeError:
        raise TypeError(f"{what} counts steps and must be an integer, got {every!r}.") from None
    if isinstance(every, bool) or value < 1:
        raise ValueError(f"{what} must be at least 1, got {every!r}; 1 means every step.")


def next_count(count: jax.Array) -> jax.Array:
    """One more step, without overflow."""
    return jnp.asarray(optax.safe_increment(count))


def on_schedule(due: jax.Array | None, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`then()` where due, else `otherwise()` of the same structure; `None` is always, without a branch."""
    if is_traced(due):
        return jax.lax.cond(due, then, otherwise)
    # Outside of jit the answer is known, and cond would compile its branches anew at every call.
    return then() if due is None or due else otherwise()


def due_after(count: jax.Array, every: Any) -> jax.Array | None:
    """Whether the step being taken, number `count + 1`, is a multiple of `every`; `None` if each one is."""
    return None if isinstance(every, int) and every == 1 else (count + 1) % every == 0


def check_rate(rate: Any, what: str) -> None:
    """Raise unless `rate` is a schedule or a fraction in [0, 1]."""
    if callable(rate) or is_traced(rate):
        return
    if not 0.0 <= float(rate) <= 1.0:
        raise ValueError(
            f"{what} is the fraction of the distance removed per step and lies in [0, 1], got {rate!r}. A pull "
            "proportional to the learning rate is a schedule: lambda step: strength * learning_rate(step)."
        )


def at_step(value: Any, count: jax.Array) -> jax.Array:
    """A float or the value of a schedule at `count`, as a strongly typed scalar."""
    return jnp.asarray(value(count) if callable(value) else value, dtype=float)


def _is_axes(node: Any) -> bool:
    return node is None or isinstance(node, int) or (isinstance(node, tuple) and all(isinstance(a, int) for a in node))


def _canonical(axes: Any, path: str, leaf: Any) -> Axes:
    ndim = jnp.ndim(leaf)
    if axes is None:
        return tuple(range(ndim))
    if not _is_axes(axes):
        raise TypeError(f"axes for {path!r} must be None, an integer or a tuple of integers, got {axes!r}.")
    named = (axes,) if isinstance(axes, int) else axes
    if not named or any(not -ndim <= axis < ndim for axis in named):
        raise ValueError(
            f"axes for {path!r} must name at least one axis in [{-ndim}, {ndim}) of shape {jnp.shape(leaf)}, got "
            f"{axes!r}. axes are the ones summed over; None sums over all of them."
        )
    reduced = tuple(sorted(axis % ndim for axis in named))
    if len(set(reduced)) != len(reduced):
        raise ValueError(f"axes for {path!r} name an axis twice: {axes!r} on shape {jnp.shape(leaf)}.")
    return reduced


def is_single_axes(axes: Any) -> bool:
    """True if `axes` is one value meant for every projected leaf."""
    return not callable(axes) and _is_axes(axes)


def resolve_axes(axes: Any, leaves: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Axes]:
    """The reduced axes of each selected leaf; all of them where a tree or path-dict does not name it."""
    if callable(axes):
        named = {path: axes(path, leaf) for path, leaf in leaves.items()}
    else:
        named = match(axes, paths, "axes", _is_axes)
    return {path: _canonical(named.get(path), path, leaf) for path, leaf in leaves.items()}


def _positive(value: Any, path: str) -> None:
    if not is_traced(value) and not np.all((np.asarray(value) > 0) & (np.asarray(value) < math.inf)):
        raise ValueError(f"radius must be positive and finite, got {value!r} for {path!r}.")


def _radius(value: Any, path: str, leaf: jax.Array, axes: Axes) -> jax.Array:
    if isinstance(value, str):
        if value != "init":
            raise ValueError(f'radius is "init", a number, a tree, a path-dict or a callable, got {value!r}.')
        return norm(wide(leaf), axes)
    _positive(value, path)
    shape = kept_shape(leaf, axes)
    if jnp.shape(value) not in ((), shape):
        raise ValueError(
            f"radius for {path!r} has shape {jnp.shape(value)}; expected a scalar or one number per slice, {shape}."
        )
    return jnp.array(jnp.broadcast_to(jnp.asarray(value), shape), dtype=wide(leaf).dtype)


def resolve_radii(
    radius: Any, leaves: Mapping[str, jax.Array], paths: Iterable[str], axes: Mapping[str, Axes]
) -> dict[str, jax.Array]:
    """One radius per leaf, or per slice of it."""
    if callable(radius):
        values = {path: radius(path, leaf) for path, leaf in leaves.items()}
    else:
        values = match(radius, paths, "radius")
    missing = [path for path in leaves if path not in values]
    if missing:
        raise ValueError(
            f'radius gives none for the projected {listing(missing)}. Add them ("init" is allowed as an '
            "entry), or leave them out of the mask."
        )
    return {path: _radius(values[path], path, leaf, axes[path]) for path, leaf in leaves.items()}


def check_shapes(stored: Mapping[str, Any], leaves: Mapping[str, Any], axes: Mapping[str, Axes], what: str) -> None:
    """Raise if a stored per-slice number no longer fits its leaf."""
    for path, leaf in leaves.items():
        expected = kept_shape(leaf, axes[path])
        if jnp.shape(stored[path]) != expected:
            raise ValueError(
                f"{what} of {path!r} in the optimizer state has shape {jnp.shape(stored[path])}, but leaf shape "
                f"{jnp.shape(leaf)} reduced over axes {axes[path]} needs {expected}. The state belongs to another "
                "architecture or axes."
            )
