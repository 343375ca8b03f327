"""The summary of a run: a table for each network on the screen, in Markdown and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.memorisation.arms import ARMS, INTERVENTIONS
from experiments.memorisation.config import Config, Settings
from experiments.memorisation.networks import describe
from experiments.memorisation.summary import Pair, Row, Spread, pairs, spread
from experiments.plasticity.summary import Job, Series, best_jobs, window
from experiments.records import plain, write_json, write_text
from experiments.statistics import Interval

HEADERS = (
    "intervention",
    "NaP",
    "lr",
    "online first",
    "online last",
    "change",
    "gap",
    "final acc. first",
    "final acc. last",
    "hidden norm",
    "effective lr first",
    "effective lr last",
    "dead units",
    "eff. rank",
)
# A narrow terminal gets what the experiment is about; the files have all columns.
FULL_WIDTH, COMPACT = 190, 7


def write(
    folder: Path,
    config: Config,
    settings: Settings,
    series: Mapping[Job, Series],
    grid: dict[str, Any] | None,
    console: Console,
) -> None:
    """Writes `summary.json` and `summary.md` and prints the tables."""
    content: dict[str, Any] = {
        "setting": config.setting(),
        "notes": _notes(config, settings, series, grid),
        "networks": {},
    }
    lines = ["# Interventions without and with NaP on random labels", ""]
    for network in settings.streams:
        heading, found, both = title(settings, network), pairs(series, network), spread(series, network)
        cells = [line for pair in found for line in _cells(pair)]
        content["networks"][network] = {
            "title": heading,
            "rows": [_as_json(pair) for pair in found],
            "spread": _plain(both),
        }
        said = [] if both is None else _spread_lines(both)
        lines += [f"## {heading}", "", *_markdown(cells), "", *(f"- {line}" for line in said), ""]
        console.print(_table(heading, cells, console.width))
        for line in said:
            console.print(f"- {line}", highlight=False)
    for note in content["notes"]:
        console.print(f"- {note}", highlight=False)
    lines += [f"- {note}" for note in content["notes"]]
    write_json(folder / "summary.json", content)
    write_text(folder / "summary.md", "\n".join([*lines, "", *([] if grid is None else _sweep_lines(grid))]))


def title(settings: Settings, network: str) -> str:
    """What was run, in one line."""
    stream = settings.streams[network]
    return (
        f"{describe(network, stream.shape)}: random labels of {stream.images} {settings.dataset} images, "
        f"{stream.tasks} tasks × {stream.steps} steps, {settings.seeds} seeds"
    )


def _spread_lines(both: Spread) -> list[str]:
    names = ", ".join(INTERVENTIONS[name].label for name in both.interventions)
    return [
        f"best minus worst of {len(both.interventions)} interventions ({names}) in online accuracy over the last "
        f"tasks: {both.without} without NaP, {both.nap} with NaP",
        f"standard deviation over these: {both.deviation_without} without NaP, {both.deviation_nap} with NaP",
    ]


def _notes(config: Config, settings: Settings, series: Mapping[Job, Series], grid: dict[str, Any] | None) -> list[str]:
    sizes = ", ".join(f"{window(s.tasks)} of {s.tasks} ({name})" for name, s in settings.streams.items())
    interval = "mean ± half width of the 95 % t interval over seeds" if settings.seeds > 1 else "one seed, no intervals"
    s = settings.strengths
    notes = [
        f"{interval}; first and last tasks: {sizes}; change is last minus first, gap is with minus without NaP over "
        "the last tasks, both paired by seed",
        "online: accuracy on each batch before it is learned; final: accuracy at the end of a task; hidden norms "
        "relative to initialisation; the remaining columns over the last tasks",
        "NaP: a layer norm before every nonlinearity, hidden kernels projected after every step, scale and offset "
        f"pulled to (1, 0) by {s.affine_decay:g} per step, the readout free; the row of the layer norm alone has with "
        "NaP the figures of NaP alone",
        f"constant Adam; strengths fixed, not tuned: AdamW {s.weight_decay:g} × lr on kernels, L2-init {s.l2_init:g} "
        f"per step, shrink to {s.shrink:g} and reset of units below {s.dormancy:g} of their layer's activation between "
        f"tasks, update noise {s.update_noise:g} × lr, readout pulled by {s.readout_decay:g} per step",
    ]
    if grid is None:
        return [*notes, "one learning rate given for all arms, none selected"]
    return [*notes, *_rate_notes(config, settings, series, grid)]


def _rate_notes(
    config: Config, settings: Settings, series: Mapping[Job, Series], grid: dict[str, Any]
) -> Iterator[str]:
    """Where the rates come from, and where they may not be the best."""
    rates = sorted({r["learning_rate"] for r in grid["results"]})
    borrowed = grid["dataset"] != settings.dataset
    on = f" on {grid['dataset']}, not on {settings.dataset}," if borrowed else ""
    yield (
        f"every arm was swept{on} over the same rates ({', '.join(f'{rate:g}' for rate in rates)}) and selected by "
        f"{grid['selection']}, on seeds other than those of a run that is not itself the sweep"
    )
    mine = plain(config.setting())
    differing = [k for k, v in mine.items() if k not in ("first_seed", "dataset") and grid["setting"].get(k) != v]
    if differing:
        yield f"the sweep was run with other settings: {', '.join(differing)}"
    edge = [_label(arm) for arm, rate in best_jobs(series).values() if len(rates) > 1 and rate in (rates[0], rates[-1])]
    if edge and not borrowed:
        yield f"best rate at the edge of the grid: {', '.join(edge)}"


def _cells(pair: Pair) -> list[list[str]]:
    label = INTERVENTIONS[pair.intervention].label
    lines = []
    if pair.without is not None:
        lines.append([label, "", *_numbers(pair.without, None)])
    if pair.nap is not None:
        lines.append([label, "NaP", *_numbers(pair.nap, pair.gap)])
    return lines


def _numbers(row: Row, gap: Interval | None) -> list[str]:
    return [
        f"{row.learning_rate:g}",
        str(row.online_first),
        str(row.online_last),
        signed(row.change),
        "" if gap is None else signed(gap),
        str(row.final_first),
        str(row.final_last),
        f"{row.last['hidden_norm_ratio']:.2f}",
        f"{row.first['hidden_effective_lr']:.1e}",
        f"{row.last['hidden_effective_lr']:.1e}",
        f"{row.last['dead_units']:.2f}",
        f"{row.last['effective_rank']:.1f}",
    ]


def signed(interval: Interval) -> str:
    """An interval with its sign."""
    return ("+" if interval.mean >= 0 else "") + str(interval)


def _table(heading: str, cells: Sequence[Sequence[str]], width: int) -> Table:
    table = Table(title=heading)
    shown = len(HEADERS) if width >= FULL_WIDTH else COMPACT
    for i, header in enumerate(HEADERS[:shown]):
        table.add_column(header, justify="right" if i > 1 else "left")
    for line in cells:
        table.add_row(*line[:shown])
    return table


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---:" if i > 1 else "---" for i in range(len(HEADERS))]
    return _rows([list(HEADERS), rule, *cells])


def _rows(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in lines]


def _plain(value: Any) -> Any:
    """Named tuples, which JSON has no word for, as dictionaries."""
    if hasattr(value, "_asdict"):
        return {name: _plain(entry) for name, entry in value._asdict().items()}
    return value


def _as_json(pair: Pair) -> dict[str, Any]:
    return _plain(pair) | {"label": INTERVENTIONS[pair.intervention].label}


def _sweep_lines(grid: dict[str, Any]) -> list[str]:
    recorded = grid["recorded"]
    versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    rates = sorted({r["learning_rate"] for r in grid["results"]})
    found = {(r["arm"], r["learning_rate"]): r["online_accuracy"] for r in grid["results"]}

    def cell(arm: str, rate: float) -> str:
        value = found.get((arm, rate))
        if value is None:
            return "-"
        return str(Interval(value["mean"], float("nan") if value["half_width"] is None else value["half_width"]))

    body = [[_label(arm), *(cell(arm, rate) for rate in rates)] for arm in dict.fromkeys(arm for arm, _ in found)]
    header = ["arm", *(f"lr {rate:g}" for rate in rates)]
    return [
        f"## The whole sweep, on {grid['dataset']}",
        "",
        "Mean online accuracy over all tasks:",
        "",
        *_rows([header, ["---"] + ["---:"] * len(rates), *body]),
        "",
        f"- recorded on {recorded['device']['kind']} with {versions}, commit {recorded['commit']}, by "
        f"`{recorded['command']}`",
        "",
    ]


def _label(name: str) -> str:
    network, _, arm = name.partition("/")
    return f"{network.upper()} {ARMS[arm].method.label}" if arm in ARMS else name
