"""Times every norm against the plainest correct formula of it, four of them against Flax, all against a copy."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import rich.table

from experiments import UsageError, records, timing
from experiments.speed import catalogue, flax_norms
from experiments.speed.entry import Entry

# A method may cost so much more than the plainest formula, and than Flax where Flax has it.
BARS = {"to plain": 1.2, "to flax": 1.05}


@dataclasses.dataclass(frozen=True)
class Config:
    """Speed of every norm on this machine.

    Attributes:
      rounds: How often each candidate is timed, in turn with the others.
      only: Names of methods; empty times all of them.
      against: "flax" for the comparison with Flax alone, "plain" for the whole catalogue, "all" for both.
      out: JSON file to write, besides the printed table.
    """

    rounds: int = 15
    only: tuple[str, ...] = ()
    against: str = "all"
    out: Path | None = None

    def __post_init__(self):
        """Rejects words that would silently time nothing."""
        if self.against not in ("all", "flax", "plain"):
            raise UsageError(f"expected --against all, flax or plain, got {self.against!r}.")


def measure(entry: Entry, rounds: int) -> dict[str, Any]:
    """Times one entry: forward, backward, and both in one program.

    Args:
      entry: The norm and its input.
      rounds: Number of interleaved rounds.

    Returns:
      Names, shape and, for each direction, milliseconds of a copy of the input and every candidate's ratio to it.

    Raises:
      AssertionError: If the formula computes something else than the norm.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(entry.shape), entry.dtype)
    cotangent = jnp.asarray(rng.standard_normal(entry.shape), entry.dtype)
    params, state = entry.norm.init(jax.random.key(0), x, **entry.context)

    def ours(params: Any, state: Any, x: jax.Array, **context: Any) -> jax.Array:
        return entry.norm.apply(params, state, x, train=True, **context)[0]

    check(entry, params, state, x)
    candidates = {"normjax": ours, "plain": entry.formula}
    if entry.flax is not None:
        candidates["flax"] = entry.flax
    result: dict[str, Any] = {"name": entry.name, "shape": entry.shape, "dtype": jnp.dtype(entry.dtype).name}
    result["copied_bytes"] = 2 * x.nbytes
    for direction, bind in DIRECTIONS.items():
        if direction != "forward" and not entry.exact:
            continue
        calls = {"copy": _call(jax.jit(lambda x: x + jnp.ones((), x.dtype)), x)}
        for name, function in candidates.items():
            calls[name] = bind(functools.partial(function, **entry.context), params, state, x, cotangent)
        times = timing.interleaved(calls, rounds)
        result[direction] = {
            "copy_milliseconds": 1e3 * float(np.median(times["copy"])),
            **{name: timing.ratio(times, name, "copy") for name in candidates},
            "to plain": timing.ratio(times, "normjax", "plain"),
            **({"to flax": timing.ratio(times, "normjax", "flax")} if entry.flax is not None else {}),
        }
    return result


def check(entry: Entry, params: Any, state: Any, x: jax.Array) -> None:
    """Raises `AssertionError` unless norm and formula agree to 64 roundings of the largest output.

    Both are within a few roundings of the exact value of a well-conditioned input, as these are.
    """
    y = entry.norm.apply(params, state, x, train=True, **entry.context)[0].astype(jnp.float32)
    expected = entry.formula(params, state, x, **entry.context).astype(jnp.float32)
    error = float(jnp.max(jnp.abs(y - expected)))
    bound = 64 * float(jnp.finfo(entry.dtype).eps) * max(1.0, float(jnp.max(jnp.abs(expected))))
    if not error <= bound:
        raise AssertionError(f"{entry.name}: norm and formula differ by {error:.3g}, more than {bound:.3g}.")


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _forward(function: Callable[..., jax.Array], params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
    return _call(jax.jit(function), params, state, x)


def _backward(function: Callable[..., jax.Array], params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
    y, pullback = jax.jit(lambda params, x: jax.vjp(lambda p, x: function(p, state, x), params, x))(params, x)
    return _call(jax.jit(lambda pullback, g: pullback(g)), pullback, cotangent.astype(y.dtype))


def _both(function: Callable[..., jax.Array], params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
    def run(params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: function(params, state, x), params, x)
        return y, pullback(cotangent.astype(y.dtype))

    return _call(jax.jit(run), params, state, x, cotangent)


# The backward pass alone reads what the forward pass has kept; in one program the compiler chooses what to keep.
DIRECTIONS: dict[str, Callable[..., Callable[[], Any]]] = {
    "forward": _forward,
    "backward": _backward,
    "forward and backward": _both,
}


def main(config: Config) -> None:
    """Times, prints the tables and writes the JSON file if one is asked for."""
    chosen = []
    if config.against in ("all", "flax"):
        chosen += flax_norms.entries()
    if config.against in ("all", "plain"):
        chosen += catalogue.entries()
    chosen = [entry for entry in chosen if not config.only or entry.name in config.only]
    if not chosen:
        known = sorted({e.name for e in [*flax_norms.entries(), *catalogue.entries()]})
        raise UsageError(f"--only {' '.join(config.only)} names no method; there are: {', '.join(known)}.")
    rows = [measure(entry, config.rounds) for entry in rich.progress.track(chosen, "timing")]
    console = rich.console.Console()
    console.print(table(rows))
    slower = [
        f"{row['name']} {'×'.join(map(str, row['shape']))} {row['dtype']}, {direction}: {row[direction][to]:.2f} {to}"
        for row in rows
        for direction in ("forward", "forward and backward")
        for to, bar in BARS.items()
        if row.get(direction, {}).get(to, 0) > bar
    ]
    bars = ", ".join(f"{bar} {to}" for to, bar in BARS.items())
    console.print("\n".join([f"{len(slower)} rows are slower than the bars ({bars}).", *slower]))
    if config.out is not None:
        records.write_json(config.out, {**records.environment(), "rounds": config.rounds, "rows": rows})


def table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows as a table: ratios to a copy of the input, and to the plain formula and Flax in the same round."""
    result = rich.table.Table(title="medians of interleaved runs; times are multiples of a copy of the input")
    for column in ("method", "input", "direction", "copy, ms", "normjax", "plain", "flax", "to plain", "to flax"):
        result.add_column(column, justify="left" if column in ("method", "input", "direction") else "right")
    for row in rows:
        for direction in (d for d in DIRECTIONS if d in row):
            cell = row[direction]
            numbers = [f"{cell[name]:.2f}" if name in cell else "" for name in ("normjax", "plain", "flax")]
            bars = [_mark(cell.get(to), bar) for to, bar in BARS.items()]
            shape = f"{'×'.join(map(str, row['shape']))} {row['dtype']}"
            result.add_row(row["name"], shape, direction, f"{cell['copy_milliseconds']:.1f}", *numbers, *bars)
    return result


def _mark(value: float | None, bar: float) -> str:
    if value is None:
        return ""
    return f"[red]{value:.2f}[/red]" if value > bar else f"{value:.2f}"
