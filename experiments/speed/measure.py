"""One entry: first that all candidates compute the same, then how long they take."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import timing
from experiments.speed.entry import Entry, arguments


class DisagreementError(Exception):
    """The norm and its plain formula are not the same function: their times must not be compared."""


def measure(entry: Entry, rounds: int) -> dict[str, Any]:
    """Checks and times one entry: forward, backward, and both in one program.

    Args:
      entry: The norm and its input.
      rounds: Number of interleaved rounds.

    Returns:
      Name, shape, bytes that a copy reads and writes and, for each direction, milliseconds of a copy of the input,
      every candidate's multiple of it, and the norm's multiple of the others: `"to plain"`, `"to flax"` by medians,
      `"fastest to plain"`, `"fastest to flax"` by the fastest rounds.

    Raises:
      DisagreementError: If the norm and its formula differ in value or derivative.
    """
    params, state, x, cotangent = arguments(entry)
    given = params, state, x, entry.context, cotangent
    candidates = {"normjax": entry.ours, "plain": entry.formula}
    if entry.flax is not None:
        candidates["flax"] = entry.flax
    others = [name for name in candidates if name != "normjax"]
    result: dict[str, Any] = {"name": entry.name, "shape": entry.shape, "dtype": jnp.dtype(entry.dtype).name}
    result["copied_bytes"] = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(x))
    copy = functools.partial(jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), x)), x)
    for direction, make in DIRECTIONS.items():
        if direction != "forward" and not entry.exact:
            continue
        calls = {name: make(function, given) for name, function in candidates.items()}
        check(entry, direction, calls["normjax"](), calls["plain"]())
        times = timing.interleaved({"copy": copy, **calls}, rounds)
        result[direction] = {
            "copy_milliseconds": 1e3 * float(np.median(times["copy"])),
            **{name: timing.ratio(times, name, "copy") for name in candidates},
            **{f"to {name}": timing.ratio(times, "normjax", name) for name in others},
            **{f"fastest to {name}": timing.ratio_of_fastest(times, "normjax", name) for name in others},
        }
    return result


def _forward(function: Callable[..., Any], given: tuple[Any, ...]) -> Callable[[], Any]:
    params, state, x, context, _ = given
    compiled = jax.jit(lambda params, state, x, context: function(params, state, x, **context))
    return functools.partial(compiled, params, state, x, context)


def _both(function: Callable[..., Any], given: tuple[Any, ...]) -> Callable[[], Any]:
    params, state, x, context, cotangent = given

    def run(params, state, x, context, cotangent):
        y, pullback = _vjp(function, params, state, x, context)
        return y, pullback(cotangent)

    return functools.partial(jax.jit(run), params, state, x, context, cotangent)


def _backward(function: Callable[..., Any], given: tuple[Any, ...]) -> Callable[[], Any]:
    params, state, x, context, cotangent = given
    # A pullback is a tree of what the forward pass keeps: made by one compiled function, taken by another.
    _, pullback = jax.jit(functools.partial(_vjp, function))(params, state, x, context)
    return functools.partial(jax.jit(lambda pullback, cotangent: pullback(cotangent)), pullback, cotangent)


def _vjp(function: Callable[..., Any], params: Any, state: Any, x: Any, context: Any) -> tuple[Any, Any]:
    """Value and pullback to parameters, input and every condition that is a real array."""
    inputs = {name: v for name, v in context.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    rest = {name: v for name, v in context.items() if name not in inputs}
    return jax.vjp(lambda params, x, inputs: function(params, state, x, **inputs, **rest), params, x, inputs)


# The backward pass alone reads what the forward pass has kept; in one program the compiler chooses what to keep.
DIRECTIONS: dict[str, Callable[..., Callable[[], Any]]] = {
    "forward": _forward,
    "backward": _backward,
    "forward and backward": _both,
}


def check(entry: Entry, direction: str, ours: Any, plain: Any) -> None:
    """Raises `DisagreementError` unless two results agree, array by array, to what rounding explains.

    Sums of n rounded terms in two orders differ by about sqrt(n) roundings of their largest values; some dozens precede
    and follow. A narrow output is rounded once more by each.
    """
    pairs = zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(plain), strict=True)
    size = max(leaf.size for leaf in jax.tree.leaves(plain))
    roundings = (64 + size**0.5) * float(jnp.finfo(jnp.float32).eps) + 2 * float(jnp.finfo(entry.dtype).eps)
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error, tolerance = float(np.max(np.abs(a - b))), roundings * float(np.max(np.abs(b)))
        if not error <= tolerance:
            where = f"{entry.name}, {direction}{jax.tree_util.keystr(path)}"
            raise DisagreementError(f"{where}: norm and formula differ by {error:.3g}, more than {tolerance:.3g}.")
