"""Times every norm against the plainest correct formula of it, four of them against Flax, all against a copy."""

import dataclasses
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

FLAX_BAR, PLAIN_BAR = 1.05, 1.2


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
    """Times one entry, forward and forward with backward.

    Args:
      entry: The norm and its input.
      rounds: Number of interleaved rounds.

    Returns:
      Names, shape and, for each direction, milliseconds of a copy of the input and every candidate's ratio to it.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(entry.shape), entry.dtype)
    cotangent = jnp.asarray(rng.standard_normal(entry.shape), entry.dtype)
    params, state = entry.norm.init(jax.random.key(0), x, **entry.context)

    def ours(params: Any, state: Any, x: jax.Array, **context: Any) -> jax.Array:
        return entry.norm.apply(params, state, x, train=True, **context)[0]

    candidates = {"normjax": ours, "plain": entry.formula}
    if entry.flax is not None:
        candidates["flax"] = entry.flax
    result: dict[str, Any] = {"name": entry.name, "shape": entry.shape, "dtype": jnp.dtype(entry.dtype).name}
    result["copied_bytes"] = 2 * x.nbytes
    for direction, make in (("forward", _forward), ("forward and backward", _both)):
        if direction != "forward" and not entry.exact:
            continue
        calls = {"copy": _bind(jax.jit(lambda x: x + jnp.ones((), x.dtype)), x)}
        for name, function in candidates.items():
            compiled = make(function, entry.context)
            calls[name] = _bind(compiled, params, state, x, cotangent)
        times = timing.interleaved(calls, rounds)
        result[direction] = {
            "copy_milliseconds": 1e3 * float(np.median(times["copy"])),
            **{name: timing.ratio(times, name, "copy") for name in candidates},
            "to plain": timing.ratio(times, "normjax", "plain"),
            **({"to flax": timing.ratio(times, "normjax", "flax")} if entry.flax is not None else {}),
        }
    return result


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _forward(function: Callable[..., jax.Array], context: dict[str, Any]) -> Callable[..., Any]:
    return jax.jit(lambda params, state, x, cotangent: function(params, state, x, **context))


def _both(function: Callable[..., jax.Array], context: dict[str, Any]) -> Callable[..., Any]:
    def run(params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: function(params, state, x, **context), params, x)
        return y, pullback(cotangent.astype(y.dtype))

    return jax.jit(run)


def run(config: Config) -> None:
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
    rich.console.Console().print(table(rows))
    if config.out is not None:
        records.write_json(config.out, {**records.environment(), "rounds": config.rounds, "rows": rows})


def table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows as a table: ratios to a copy of the input, and to the plain formula and Flax in the same round."""
    result = rich.table.Table(title="medians of interleaved runs; times are multiples of a copy of the input")
    for column in ("method", "input", "direction", "copy, ms", "normjax", "plain", "flax", "to plain", "to flax"):
        result.add_column(column, justify="left" if column in ("method", "input", "direction") else "right")
    for row in rows:
        for direction in ("forward", "forward and backward"):
            if direction not in row:
                continue
            cell = row[direction]
            numbers = [f"{cell[name]:.2f}" if name in cell else "" for name in ("normjax", "plain", "flax")]
            bars = [_mark(cell.get("to plain"), PLAIN_BAR), _mark(cell.get("to flax"), FLAX_BAR)]
            shape = f"{'×'.join(map(str, row['shape']))} {row['dtype']}"
            result.add_row(row["name"], shape, direction, f"{cell['copy_milliseconds']:.1f}", *numbers, *bars)
    return result


def _mark(value: float | None, bar: float) -> str:
    if value is None:
        return ""
    return f"[red]{value:.2f}[/red]" if value > bar else f"{value:.2f}"
