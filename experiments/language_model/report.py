"""The summary of a run: a table on the screen, in Markdown and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.language_model.config import Config
from experiments.language_model.summary import SPIKE_BITS, SPIKE_WINDOW, Row
from experiments.records import write_json, write_text
from experiments.statistics import Interval

HEADERS = (
    "arm",
    "validation",
    "train",
    "spikes",
    "worst rise",
    "gradient last/first, start",
    "end",
    "norm growth",
    "effective lr",
    "rotation",
)


def write(folder: Path, config: Config, text: dict[str, Any], rows: Sequence[Row], console: Console) -> None:
    """Writes `summary.json` and `summary.md` and prints a table for each learning rate, the best arm first."""
    title, notes = _title(config), _notes(config, text)
    content = {
        "title": title,
        "setting": config.setting(),
        "text": text,
        "notes": notes,
        "rows": list(map(_plain, rows)),
    }
    write_json(folder / "summary.json", content)
    lines = [f"# {title}", ""]
    for rate in config.rates:
        ranked = sorted((row for row in rows if row.learning_rate == rate), key=_rank)
        cells = [_cells(row) for row in ranked]
        lines += [f"## Learning rate {rate:g}", "", *_markdown(cells), ""]
        table = Table(title=f"{title}, learning rate {rate:g}")
        for i, header in enumerate(HEADERS):
            table.add_column(header, justify="right" if i else "left")
        for line in cells:
            table.add_row(*line)
        console.print(table)
    write_text(folder / "summary.md", "\n".join([*lines, *(f"- {note}" for note in notes), ""]))
    for note in notes:
        console.print(f"- {note}", highlight=False)


def _rank(row: Row) -> float:
    return row.validation.mean if np.isfinite(row.validation.mean) else np.inf


def _title(config: Config) -> str:
    return (
        f"Bytes of {config.dataset}, {config.layers} blocks of {config.width}, {config.steps} steps of "
        f"{config.batch_size} x {config.length}"
    )


def _notes(config: Config, text: dict[str, Any]) -> list[str]:
    spread = "mean ± half width of the 95 % t interval over seeds" if config.seeds > 1 else "one seed, no intervals"
    return [
        f"bits per byte, {spread} ({config.seeds}); all arms see the same bytes in the same order, seed by seed",
        f"text: splits {' and '.join(text['splits'])}, {text['bytes'][0]:,} bytes of which "
        f"{config.steps * config.batch_size * config.length:,} are read per run, sha256 {text['sha256'][:12]}",
        f"AdamW, weight decay {config.weight_decay:g}, {config.warmup} steps of warm-up, cosine to a tenth; no "
        "clipping; one rate for all arms, none tuned",
        f"a spike: a loss more than {SPIKE_BITS:g} bit above the median of the {SPIKE_WINDOW} steps before it, steps "
        "per run; worst rise: the highest above that median, over all seeds",
        "gradient last/first: norm of the last block's gradient over the first block's, in the first and the last "
        "record; norm growth, effective lr and rotation per step: means over the matrices of all blocks at the end",
        "+nap holds only the matrices that placement and norm make scale-invariant",
    ]


def _cells(row: Row) -> list[str]:
    return [
        row.arm,
        str(row.validation),
        str(row.train),
        f"{row.spikes:.1f}",
        f"{row.worst:.2f}",
        *("-" if np.isnan(ratio) else f"{ratio:.3g}" for ratio in (row.gradient_first, row.gradient_last)),
        f"{row.growth:.2f}",
        f"{row.effective_lr:.1e}",
        f"{row.rotation:.1e}",
    ]


def _plain(row: Row) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Interval) else value for name, value in row._asdict().items()}


def _markdown(cells: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(HEADERS) - 1)]
    return ["| " + " | ".join(line) + " |" for line in [list(HEADERS), rule, *cells]]
