"""The figure of a run: the return of every phase, and what happens to the weights meanwhile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.minatar.arms import ARMS
from experiments.minatar.config import Settings
from experiments.minatar.report import title
from experiments.minatar.summary import Job, Row, Series, curves
from experiments.statistics import stratified_bootstrap

# Okabe and Ito's colours, which colour-blind readers tell apart; a linear decay of the rate is dotted.
STYLES: Mapping[str, tuple[str, Any]] = {
    "plain": ("#999999", "-"),
    "ln": ("#0072B2", "-"),
    "ln_linear": ("#0072B2", (0, (1.5, 1.2))),
    "ln_wd": ("#009E73", "-"),
    "nap": ("#D55E00", "-"),
    "nap_linear": ("#D55E00", (0, (1.5, 1.2))),
    "fresh": ("#000000", (0, (4, 2))),
}


def draw(path: Path, settings: Settings, series: Mapping[Job, Series], rows: list[Row]) -> None:
    """Draws each arm at its best rate of the run.

    Args:
      path: PNG to write.
      settings: Of the run.
      series: Recorded metrics by arm and rate.
      rows: Their summary.
    """
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.mean):
        best[row.arm] = row
    shown = [best[arm] for arm in ARMS if arm in best]
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["phases", "last", "rate"], ["phases", "norm", "dead"]], width_ratios=[2.0, 1.2, 1.0]
    )
    chosen = {row.arm: series[row.arm, row.learning_rate] for row in shown}
    _phases(panels["phases"], chosen)
    _last(panels["last"], shown)
    rates = {name: _along(values["hidden_effective_lr"]) for name, values in chosen.items()}
    _means(panels["rate"], rates, "effective learning rate, hidden", log=True)
    norms = {name: values["hidden_norm_ratio"].mean(axis=1) for name, values in chosen.items()}
    _means(panels["norm"], norms, "hidden norm / initial norm", log=False)
    dead = {name: _along(values["dead_units"]) for name, values in chosen.items()}
    _means(panels["dead"], dead, "dead units", log=False)
    figure.legend(*panels["phases"].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title(settings), fontsize=11)
    figure.savefig(path, dpi=150)


def _along(curves: np.ndarray) -> np.ndarray:
    """Curves `(phases, seeds, segments)` one phase after the other, averaged over seeds."""
    return curves.mean(axis=1).reshape(-1)


def _phases(axes: Axes, chosen: Mapping[str, Series]) -> None:
    for name, values in chosen.items():
        color, dashes = STYLES[name]
        estimates = [stratified_bootstrap(scores[:, None]) for scores in curves(values).mean(axis=2)]
        center, low, high = np.array(estimates).T
        numbers = np.arange(1, len(center) + 1)
        axes.plot(numbers, center, color=color, linestyle=dashes, linewidth=1.8, label=ARMS[name].label)
        axes.fill_between(numbers, low, high, color=color, alpha=0.1, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="phase", ylabel="return, averaged over the phase")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Return of every phase: IQM over seeds, 95 % bootstrap bands", loc="left", fontsize=10.5)
    _bare(axes)


def _last(axes: Axes, rows: list[Row]) -> None:
    for place, row in enumerate(reversed(rows)):
        color = STYLES[row.arm][0]
        for estimate, shift, fill in ((row.first, 0.16, "white"), (row.last, -0.16, color)):
            axes.plot([estimate.low, estimate.high], [place + shift] * 2, color=color, linewidth=1.6)
            axes.plot(estimate.value, place + shift, "o", color=color, markerfacecolor=fill, markersize=6)
    axes.set_yticks(range(len(rows)), [ARMS[row.arm].label for row in reversed(rows)], fontsize=8.5)
    axes.set_title("first (open) and last phases (filled), 95 %", loc="left", fontsize=10.5)
    axes.set_xlim(left=0)
    _bare(axes)


def _means(axes: Axes, values: Mapping[str, np.ndarray], heading: str, *, log: bool) -> None:
    for name, mean in values.items():
        color, dashes = STYLES[name]
        phases = np.linspace(0, 1, len(mean) + 1)[1:]
        axes.plot(phases, mean, color=color, linestyle=dashes, linewidth=1.5)
    axes.set_title(heading, loc="left", fontsize=10.5)
    axes.set(xlabel="fraction of the stream", xlim=(0, 1))
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
