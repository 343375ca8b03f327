"""Times every norm against the plainest correct formula of it, four of them against Flax, all against a copy."""

import dataclasses
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import rich.table

from experiments import UsageError, records
from experiments.accuracy import lenient
from experiments.speed import catalogue, flax_norms
from experiments.speed.entry import Entry
from experiments.speed.measure import DIRECTIONS, measure

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


def main(config: Config) -> list[dict[str, Any]]:
    """Times, prints the table and what exceeds a bar, and writes the JSON file if one is asked for.

    Args:
      config: The settings.

    Returns:
      The rows.

    Raises:
      UsageError: If a name is no method's.
      SystemExit: With status 1 if a row exceeds a bar.
    """
    console = rich.console.Console()
    entries = chosen(config)
    with lenient():
        rows = [measure(entry, config.rounds) for entry in rich.progress.track(entries, "timing", console=console)]
    if not console.is_terminal:
        console = rich.console.Console(width=160)
    console.print(table(rows))
    about = records.environment()
    console.print(f"{about['device']['kind']}, {about['machine']['cores']} cores, jax {about['versions']['jax']}")
    if config.out is not None:
        records.write_json(config.out, {**about, "rounds": config.rounds, "bars": BARS, "rows": rows})
        console.print(f"written to {config.out}")
    slower = exceeding(rows)
    bars = ", ".join(f"{bar} {to}" for to, bar in BARS.items())
    console.print("\n".join([f"{len(slower)} results are slower than the bars ({bars}).", *slower]))
    if slower:
        raise SystemExit(1)
    return rows


def chosen(config: Config) -> list[Entry]:
    """The entries that the settings name."""
    entries = []
    for name, make in (("flax", flax_norms.entries), ("plain", catalogue.entries)):
        entries += make() if config.against in ("all", name) else []
    known = sorted({entry.name for entry in entries})
    if unknown := set(config.only) - set(known):
        raise UsageError(f"--only {' '.join(sorted(unknown))} names no method; there are: {', '.join(known)}.")
    return [entry for entry in entries if not config.only or entry.name in config.only]


def exceeding(rows: list[dict[str, Any]]) -> list[str]:
    """The results above a bar, one line each; the backward pass alone has none, it depends on what was kept.

    On a busy machine a median alone is above a bar by accident, so the fastest rounds have to be above it too.
    """
    return [
        f"{row['name']} {'×'.join(map(str, row['shape']))} {row['dtype']}, {direction}: "
        f"{row[direction][to]:.2f} {to}, {row[direction][f'fastest {to}']:.2f} in the fastest rounds"
        for row in rows
        for direction in ("forward", "forward and backward")
        for to, bar in BARS.items()
        if min(row.get(direction, {}).get(key, 0) for key in (to, f"fastest {to}")) > bar
    ]


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
