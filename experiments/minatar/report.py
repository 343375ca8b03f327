"""The summary of a run: a table on the screen, in Markdown and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.minatar.algorithms import ALGORITHMS
from experiments.minatar.arms import ARMS, DECAY
from experiments.minatar.config import Settings
from experiments.minatar.summary import Row, window
from experiments.records import plain, write_json, write_text
from experiments.statistics import Estimate, Interval

HEADERS = (
    "arm",
    "lr",
    "return, all phases",
    "first phases",
    "last phases",
    "change",
    "last vs fresh",
    "end of last phases",
    "hidden norm",
    "readout norm",
    "affine norm",
    "effective lr at end",
    "dead units",
)
# A narrow terminal gets what the experiment is about; the files have all columns.
FULL_WIDTH, COMPACT = 180, 6


def write(folder: Path, settings: Settings, rows: Sequence[Row], grid: dict[str, Any] | None, console: Console) -> None:
    """Writes `summary.json` and `summary.md` and prints the table."""
    heading, cells, notes = title(settings), [_cells(row) for row in rows], _notes(settings, rows, grid)
    content = {"title": heading, "setting": settings._asdict(), "notes": notes, "rows": [_as_json(r) for r in rows]}
    write_json(folder / "summary.json", content)
    rule = ["---", *["---:"] * (len(HEADERS) - 1)]
    lines = ["| " + " | ".join(line) + " |" for line in [list(HEADERS), rule, *cells]]
    text = [f"# {heading}", "", *lines, "", *[f"- {note}" for note in notes], ""]
    write_text(folder / "summary.md", "\n".join(text))
    table = Table(title=heading)
    shown = len(HEADERS) if console.width >= FULL_WIDTH else COMPACT
    for i, header in enumerate(HEADERS[:shown]):
        table.add_column(header, justify="right" if i else "left")
    for line in cells:
        table.add_row(*line[:shown])
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False)


def title(settings: Settings) -> str:
    """What was run, in one line."""
    games = " → ".join(settings.games)
    stream = f"{games}, permuted anew every phase" if settings.stream == "permuted" else games
    return (
        f"{ALGORITHMS[settings.algorithm].label} on MinAtar {stream}: {settings.phases} phases × {settings.steps:,} "
        f"steps, MLP {settings.depth} × {settings.width}, {settings.seeds} seeds"
    )


def _notes(settings: Settings, rows: Sequence[Row], grid: dict[str, Any] | None) -> list[str]:
    size = window(settings)
    cycle = settings.stream == "cycle" and any(row.arm == "fresh" for row in rows)
    notes = [
        "return: of the episodes that end in a phase, averaged over the phase (area under the learning curve), as the "
        "agent plays while it learns" + ("; in units of the fresh network's in the same game" if cycle else ""),
        f"interquartile mean and 95 % interval of a stratified bootstrap over seeds and phases; first and last: {size} "
        f"of {settings.phases} phases",
        "change and the comparison with the fresh network: mean, and 95 % t interval over seeds, paired by seed",
        f"new Adam and schedule in every phase; linear decay by a factor of {DECAY:g}; strengths fixed, not tuned: "
        f"weight decay {settings.strengths.weight_decay:g} × lr on kernels, scale and offset pulled to (1, 0) by "
        f"{settings.strengths.affine_decay:g} per step in the NaP arms and beside weight decay; norms relative to "
        "initialisation",
    ]
    if grid is None:
        return [*notes, "one learning rate given for all arms, none selected"]
    rates = sorted({r["learning_rate"] for r in grid["results"]})
    listed = ", ".join(f"{rate:g}" for rate in rates)
    notes.append(
        f"every arm was swept over the same rates ({listed}), on {grid['setting']['seeds']} other seeds, and selected "
        f"by {grid['selection']}"
    )
    mine = plain(settings._asdict())
    differing = [k for k, v in mine.items() if k != "seeds" and grid["setting"].get(k) != v]
    if differing:
        notes.append(f"the sweep was run with other settings: {', '.join(differing)}")
    edge = [ARMS[r.arm].label for r in rows if len(rates) > 1 and r.learning_rate in (rates[0], rates[-1])]
    if edge and len(rows) == len({row.arm for row in rows}):
        notes.append(f"best rate at the edge of the grid: {', '.join(edge)}")
    return notes


def _cells(row: Row) -> list[str]:
    def number(name: str) -> str:
        value = row.at_end[name]
        return "-" if np.isnan(value) else f"{value:.2f}"

    return [
        ARMS[row.arm].label,
        f"{row.learning_rate:g}",
        str(row.overall),
        str(row.first),
        str(row.last),
        _signed(row.change),
        "-" if row.versus_fresh is None else _signed(row.versus_fresh),
        str(row.end),
        *[number(name) for name in ("hidden_norm_ratio", "readout_norm_ratio", "affine_norm")],
        f"{row.at_end['hidden_effective_lr']:.1e}",
        number("dead_units"),
    ]


def _signed(interval: Interval) -> str:
    width = "" if np.isnan(interval.half_width) else f" ± {interval.half_width:.2f}"
    return f"{interval.mean:+.2f}{width}"


def _as_json(row: Row) -> dict[str, Any]:
    values = {k: v._asdict() if isinstance(v, Estimate | Interval) else v for k, v in row._asdict().items()}
    return values | {"label": ARMS[row.arm].label}
