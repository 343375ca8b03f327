"""The summary of a run: a table on the screen, in Markdown and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.continual_batchnorm.arms import ARMS
from experiments.continual_batchnorm.config import Config
from experiments.continual_batchnorm.summary import Row
from experiments.records import write_json, write_text
from experiments.statistics import Interval

HEADERS = ("norm", "accuracy", "minus BN", "forgetting", "learned", "rate", "auxiliary")


def write(folder: Path, config: Config, rows: Sequence[Row], console: Console) -> None:
    """Writes `summary.json` and `summary.md` and prints the table, the highest accuracy first."""
    ranked = sorted(rows, key=lambda row: -row.accuracy.mean)
    title, notes, cells = _title(config), _notes(config), [_cells(row) for row in ranked]
    content = {"title": title, "notes": notes, "setting": config, "rows": list(map(_plain, ranked))}
    write_json(folder / "summary.json", content)
    rule = ["---", *["---:"] * (len(HEADERS) - 1)]
    lines = ["| " + " | ".join(line) + " |" for line in [list(HEADERS), rule, *cells]]
    write_text(folder / "summary.md", "\n".join([f"# {title}", "", *lines, "", *(f"- {note}" for note in notes), ""]))
    table = Table(title=title)
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if i else "left")
    for line in cells:
        table.add_row(*line)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False)


def _title(config: Config) -> str:
    return (
        f"{config.dataset} in {config.tasks} tasks, {config.batch_size} new and {config.replay} replayed images a step"
    )


def _notes(config: Config) -> list[str]:
    spread = "mean ± half width of the 95 % t interval over seeds" if config.seeds > 1 else "one seed, no intervals"
    return [
        f"{spread} ({config.seeds}); a seed gives every norm the same tasks and batches; minus BN is paired by seed",
        f"accuracy: among all classes, on {config.held_out_per_class} test images of each, after the last task; "
        "forgetting: highest accuracy on a task before the end minus that at the end, all tasks but the last; learned: "
        "accuracy on a task right after it",
        f"{config.train_per_class} images per class, each new once; reservoir of {config.buffer}; SGD; residual "
        f"network of two blocks, {config.width} and {2 * config.width} channels, {config.groups} groups",
        f"rates {', '.join(f'{r:g}' for r in config.learning_rates)} and auxiliary weights "
        f"{', '.join(f'{w:g}' for w in config.auxiliary_weights)}, chosen by accuracy on "
        f"{config.held_out_per_class} other images per class; * lowest or highest rate tried; kappa {config.kappa:g}",
    ]


def _cells(row: Row) -> list[str]:
    return [
        ARMS[row.arm].label,
        str(row.accuracy),
        "-" if row.versus_bn is None else str(row.versus_bn),
        str(row.forgetting),
        str(row.learned),
        f"{row.learning_rate:g}{'*' if row.at_edge else ''}",
        f"{row.auxiliary_weight:g}" if ARMS[row.arm].auxiliary else "-",
    ]


def _plain(row: Row) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Interval) else value for name, value in row._asdict().items()}
