"""The summary of a run: a table on the screen, in Markdown and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.plasticity.arms import ARMS
from experiments.plasticity.config import Config
from experiments.plasticity.summary import Row, window
from experiments.records import write_json, write_text
from experiments.statistics import Interval

HEADERS = (
    "arm",
    "lr",
    "online first",
    "online last",
    "change",
    "last vs fresh",
    "final acc. last",
    "hidden norm",
    "readout norm",
    "affine norm",
    "effective lr last",
    "dead units",
    "eff. rank",
)
RIGHT_ALIGNED_FROM = 1
# A narrow terminal gets what the experiment is about; the files have all columns.
FULL_WIDTH, COMPACT = 170, 6


def write(folder: Path, config: Config, rows: Sequence[Row], grid: dict[str, Any] | None, console: Console) -> None:
    """Writes `summary.json` and `summary.md` and prints the table."""
    cells = [_cells(row) for row in rows]
    title, notes = _title(config), _notes(config, rows, grid)
    content = {"title": title, "setting": config.setting(), "notes": notes, "rows": [_as_json(row) for row in rows]}
    write_json(folder / "summary.json", content)
    write_text(folder / "summary.md", _markdown(title, cells, notes, grid))
    table = Table(title=title)
    shown = len(HEADERS) if console.width >= FULL_WIDTH else COMPACT
    for i, header in enumerate(HEADERS[:shown]):
        table.add_column(header, justify="right" if i >= RIGHT_ALIGNED_FROM else "left")
    for line in cells:
        table.add_row(*line[:shown])
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False)


def _title(config: Config) -> str:
    return (
        f"Random labels of {config.images} {config.dataset} images, {config.tasks} tasks x {config.steps} steps, "
        f"MLP {config.depth} x {config.width}, {config.seeds} seeds"
    )


def _notes(config: Config, rows: Sequence[Row], grid: dict[str, Any] | None) -> list[str]:
    size = window(config.tasks)
    spread = "mean ± half width of the 95 % t interval over seeds" if config.seeds > 1 else "one seed, no intervals"
    notes = [
        f"{spread}; first and last: the first and last {size} of {config.tasks} tasks; change and the comparison "
        "with the fresh network are paired by seed",
        "online: accuracy on each batch before it is learned; final: accuracy on all images at the end of a task; "
        "norms relative to initialisation; the remaining columns over the last tasks",
        f"constant Adam; strengths fixed, not tuned: weight decay {config.weight_decay:g} x lr on kernels, L2-init "
        f"{config.l2_init:g}, affine decay {config.affine_decay:g}, readout decay {config.readout_decay:g} per step",
    ]
    if grid is None:
        notes.append("one learning rate given for all arms, none selected")
        return notes
    rates = sorted({r["learning_rate"] for r in grid["results"]})
    listed = ", ".join(f"{rate:g}" for rate in rates)
    borrowed = grid["dataset"] != config.dataset
    on = f" on {grid['dataset']}, not on {config.dataset}," if borrowed else ""
    notes.append(
        f"every arm was swept{on} over the same rates ({listed}) and selected by {grid['selection']}, on seeds other "
        "than those of a run that is not itself the sweep"
    )
    differing = [
        k for k, v in config.setting().items() if k not in ("first_seed", "dataset") and grid["setting"].get(k) != v
    ]
    if differing:
        notes.append(f"the sweep was run with other settings: {', '.join(differing)}")
    if not config.sweep and not borrowed:
        edge = [ARMS[r.arm].label for r in rows if len(rates) > 1 and r.learning_rate in (rates[0], rates[-1])]
        if edge:
            notes.append(f"best rate at the edge of the grid: {', '.join(edge)}")
    return notes


def _cells(row: Row) -> list[str]:
    def number(value: float, digits: int = 2) -> str:
        return "-" if np.isnan(value) else f"{value:.{digits}f}"

    return [
        ARMS[row.arm].label,
        f"{row.learning_rate:g}",
        str(row.online_first),
        str(row.online_last),
        _signed(row.change),
        "-" if row.versus_fresh is None else _signed(row.versus_fresh),
        str(row.final_last),
        number(row.last["hidden_norm_ratio"]),
        number(row.last["readout_norm_ratio"]),
        number(row.last["affine_norm"]),
        f"{row.last['hidden_effective_lr']:.1e}",
        number(row.last["dead_units"]),
        number(row.last["effective_rank"], 1),
    ]


def _signed(interval: Interval) -> str:
    return ("+" if interval.mean >= 0 else "") + str(interval)


def _as_json(row: Row) -> dict[str, Any]:
    return {
        name: value._asdict() if isinstance(value, Interval) else value for name, value in row._asdict().items()
    } | {"label": ARMS[row.arm].label}


def _markdown(title: str, cells: list[list[str]], notes: list[str], grid: dict[str, Any] | None) -> str:
    rule = ["---:" if i >= RIGHT_ALIGNED_FROM else "---" for i in range(len(HEADERS))]
    lines = [f"# {title}", "", *_rows([list(HEADERS), rule, *cells]), "", *[f"- {note}" for note in notes], ""]
    if grid is not None:
        lines += _sweep_tables(grid)
    return "\n".join(lines)


def _sweep_tables(grid: dict[str, Any]) -> list[str]:
    recorded = grid["recorded"]
    versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    return [
        f"## The whole sweep, on {grid['dataset']}",
        "",
        *_sweep_table(grid, "online_accuracy", "Mean online accuracy over all tasks"),
        *_sweep_table(grid, "change", "Change of online accuracy from first to last tasks"),
        f"- recorded on {recorded['device']['kind']} with {versions}, commit {recorded['commit']}, by "
        f"`{recorded['command']}`",
        "",
    ]


def _sweep_table(grid: dict[str, Any], name: str, title: str) -> list[str]:
    arms = list(dict.fromkeys(r["arm"] for r in grid["results"]))
    rates = sorted({r["learning_rate"] for r in grid["results"]})
    found = {(r["arm"], r["learning_rate"]): r[name] for r in grid["results"]}

    def cell(arm: str, rate: float) -> str:
        value = found.get((arm, rate))
        if value is None:
            return "-"
        width = value["half_width"]
        return str(Interval(value["mean"], float("nan") if width is None else width))

    body = [[ARMS[arm].label if arm in ARMS else arm, *(cell(arm, rate) for rate in rates)] for arm in arms]
    header = ["arm", *(f"lr {rate:g}" for rate in rates)]
    return [f"{title}:", "", *_rows([header, ["---"] + ["---:"] * len(rates), *body]), ""]


def _rows(lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in lines]
