"""The summary of a run: tables on the screen, in Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.image_classification import sweep
from experiments.image_classification.arms import ARMS, MOMENTUM, NAP
from experiments.image_classification.config import Config
from experiments.image_classification.corruptions import CORRUPTIONS
from experiments.image_classification.summary import Found, Job, Row, at_reference, pairs, under_corruptions
from experiments.records import plain, write_json, write_text
from experiments.statistics import Interval, t_interval


class Sheet(NamedTuple):
    """A table: its title, its headers, and cells of text."""

    title: str
    headers: Sequence[str]
    cells: Sequence[Sequence[str]]


def write(folder: Path, config: Config, found: Mapping[Job, Found], rows: Sequence[Row], console: Console) -> None:
    """Writes `summary.json` and `summary.md` and prints the tables."""
    title, notes = _title(config), _notes(config)
    sheets = (
        [_rates(rows)]
        if config.sweep
        else [_batches(rows, config), _corruptions(found, config), _nap(found, rows, config)]
    )
    sheets = [sheet for sheet in sheets if sheet.cells]
    write_json(folder / "summary.json", _content(title, notes, config, found, rows))
    lines = [f"# {title}", ""]
    for sheet in sheets:
        rule = ["---", *["---:"] * (len(sheet.headers) - 1)]
        table = ["| " + " | ".join(cells) + " |" for cells in (sheet.headers, rule, *sheet.cells)]
        lines += [f"## {sheet.title}", "", *table, ""]
        console.print(_on_screen(sheet))
    write_text(folder / "summary.md", "\n".join([*lines, *(f"- {note}" for note in notes), ""]))
    for note in notes:
        console.print(f"- {note}", highlight=False)


def _on_screen(sheet: Sheet) -> Table:
    table = Table(title=sheet.title)
    for i, header in enumerate(sheet.headers):
        table.add_column(header, justify="right" if i else "left")
    for cells in sheet.cells:
        table.add_row(*cells)
    return table


def _content(title: str, notes: Sequence[str], config: Config, found: Mapping[Job, Found], rows: Sequence[Row]) -> Any:
    corrupted = {
        arm: {way: {name: t_interval(values)._asdict() for name, values in by.items()} for way, by in ways.items()}
        for arm, ways in _ways(found, config).items()
    }
    return {
        "title": title,
        "setting": config.setting(),
        "notes": notes,
        "rows": [_plain(row) | row.job._asdict() for row in rows],
        "corrupted": corrupted,
        "nap": [_plain(pair) for pair in pairs(found, config)],
    }


def _plain(row: Any) -> dict[str, Any]:
    values = {name: v._asdict() if isinstance(v, Interval) else v for name, v in row._asdict().items() if name != "job"}
    return plain(values)


def _title(config: Config) -> str:
    return f"{config.dataset}, {config.images_seen:,} images seen, {config.seeds} seeds"


def _notes(config: Config) -> list[str]:
    spread = "mean ± half width of the 95 % t interval over seeds" if config.seeds > 1 else "one seed, no intervals"
    strengths = "; ".join(f"{name} {low:g} and {high:g}" for name, (_, (low, high)) in CORRUPTIONS.items())
    return [
        f"test accuracy, {spread}; differences are paired by seed; a seed has the same images in the same order at "
        "every batch size and in every arm",
        f"rates are those at batch {config.reference_batch} times b / {config.reference_batch} for SGD (momentum "
        f"{MOMENTUM:g}, residual networks) and times its root for Adam (transformers); warm-up over a twentieth, "
        "cosine to zero; no weight decay, no augmentation",
        f"running statistics forget over equally many images: momentum {MOMENTUM:g} to the power of "
        f"b / {config.reference_batch}",
        f"corruptions: {strengths}, columns are means over both; estimated anew: running statistics from the corrupted "
        "test images, without their labels",
        f"residual network: {config.stages} stages of {config.blocks}, {config.width} channels at first, "
        f"{config.groups} groups; transformer: {config.vit_layers} blocks of {config.vit_width}, patches of "
        f"{config.patch}; images shrunk {config.shrink}-fold",
        _chosen(config),
    ]


def _chosen(config: Config) -> str:
    if config.sweep:
        return "a sweep: every arm at every rate, at the reference batch"
    if config.sgd_rate is not None and config.adam_rate is not None:
        return f"rates given: {config.sgd_rate:g} for SGD, {config.adam_rate:g} for Adam"
    grid = sweep.for_run(config)
    now = plain(config.setting())
    other = [k for k, v in now.items() if k not in ("dataset", "first_seed") and grid["setting"].get(k) != v]
    return (
        f"rates chosen on {grid['dataset']} by {grid['selection']}, * lowest or highest rate that was tried, on "
        f"other seeds (`{grid['recorded']['command']}`)"
        + (f"; the sweep was run with other settings: {', '.join(other)}" if other else "")
    )


def _rates(rows: Sequence[Row]) -> Sheet:
    cells = [
        [ARMS[row.job.arm].label, f"{row.job.learning_rate:g}", str(row.validation), str(row.diverged)] for row in rows
    ]
    return Sheet("Validation accuracy by learning rate", ("arm", "rate", "validation", "diverged"), cells)


def _batches(rows: Sequence[Row], config: Config) -> Sheet:
    sizes, rates = sorted(config.batch_sizes), _reference_rates(rows, config)
    by_place = {(row.job.arm, row.job.batch_size): row for row in rows}
    headers = ["arm", f"rate at {config.reference_batch}", *(f"batch {size}" for size in sizes)]
    headers += [f"{sizes[0]} minus {config.reference_batch}"]
    cells = []
    for arm in (arm for arm in config.arms if ARMS[arm].every_batch):
        mine = [by_place.get((arm, size)) for size in sizes]
        change = mine[0].versus_reference if mine[0] else None
        cells.append([ARMS[arm].label, rates[arm], *map(_accuracy, mine), _signed(change)])
    return Sheet("Test accuracy by batch size", headers, cells)


def _reference_rates(rows: Sequence[Row], config: Config) -> dict[str, str]:
    """Each arm's rate at the reference batch, with a star where it is the lowest or highest of its sweep."""
    # The rule of scaling turned around, rounded so that 0.1 / 64 * 64 is 0.1 again.
    factors = {row.job: ARMS[row.job.arm].rate(1.0, row.job.batch_size, config.reference_batch) for row in rows}
    rates = {row.job.arm: float(f"{row.job.learning_rate / factors[row.job]:.6g}") for row in rows}
    needed = any((config.adam_rate if ARMS[arm].adam else config.sgd_rate) is None for arm in rates)
    results = sweep.for_run(config)["results"] if needed else []
    tried = {arm: [r["learning_rate"] for r in results if r["arm"] == arm] for arm in rates}
    edges = {arm: (min(grid), max(grid)) for arm, grid in tried.items() if grid}
    return {arm: f"{rate:g}{'*' if rate in edges.get(arm, ()) else ''}" for arm, rate in rates.items()}


def _accuracy(row: Row | None) -> str:
    if row is None:
        return "-"
    return str(row.test) + (f" ({row.diverged} diverged)" if row.diverged else "")


def _ways(found: Mapping[Job, Found], config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    reference = at_reference(found, config)
    return {arm: under_corruptions(values) for arm, values in reference.items() if values.corrupted}


def _corruptions(found: Mapping[Job, Found], config: Config) -> Sheet:
    names = ("clean", *CORRUPTIONS)
    cells = []
    for arm, ways in _ways(found, config).items():
        for way, values in ways.items():
            label = ARMS[arm].label + (", statistics estimated anew" if way == "estimated anew" else "")
            cells.append([label, *(str(t_interval(values[name])) for name in names)])
    return Sheet(f"Test accuracy under corruptions, batch {config.reference_batch}", ("arm", *names), cells)


def _nap(found: Mapping[Job, Found], rows: Sequence[Row], config: Config) -> Sheet:
    rates = _reference_rates(rows, config)
    cells = [
        [
            ARMS[pair.arm].label,
            rates[pair.arm],
            str(pair.without),
            rates[pair.arm + NAP],
            str(pair.with_nap),
            _signed(pair.difference),
            f"{pair.growth.mean:.2f}",
            f"{pair.growth_with_nap.mean:.2f}",
        ]
        for pair in pairs(found, config)
    ]
    headers = ("arm", "rate", "without NaP", "rate", "with NaP", "difference", "norm growth without", "with")
    return Sheet(f"Normalize-and-Project, batch {config.reference_batch}", headers, cells)


def _signed(interval: Interval | None) -> str:
    return "-" if interval is None else ("+" if interval.mean >= 0 else "") + str(interval)
