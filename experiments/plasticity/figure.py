"""The figure of a run: what happens to accuracy, why, and how much the learning rate decides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from experiments.plasticity.arms import ARMS
from experiments.plasticity.config import Config
from experiments.plasticity.summary import Job, Series, best_jobs


class Style(NamedTuple):
    """How one arm is drawn; colours are Okabe and Ito's, which colour-blind readers tell apart."""

    color: str
    dashes: Any = "-"
    bold: bool = False


_DOTTED = (0, (1.5, 1.2))
STYLES = {
    "plain": Style("#999999"),
    "ln": Style("#0072B2"),
    "ln_wd": Style("#56B4E9"),
    "ln_wd_decay": Style("#56B4E9", _DOTTED),
    "ln_l2init": Style("#009E73"),
    "ln_decay_readout": Style("#0072B2", _DOTTED),
    "nap": Style("#E69F00"),
    "nap_decay": Style("#D55E00"),
    "nap_decay_readout": Style("#CC79A7", bold=True),
    "fresh": Style("#000000", (0, (4, 2))),
}
CHANCE = 0.1
# Distance of neighbouring names, as a fraction of the height of the axes.
LABEL_GAP = 0.042


def draw(path: Path, config: Config, series: Mapping[Job, Series], grid: dict[str, Any] | None) -> None:
    """Draws each arm at its best rate of the run.

    Args:
      path: PNG to write.
      config: The run.
      series: Recorded metrics by arm and rate.
      grid: The sweep, for the panel of learning rates; `None` leaves the panel out.
    """
    jobs = [best_jobs(series)[arm] for arm in config.arms if arm in best_jobs(series)]
    figure = Figure(figsize=(14, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["accuracy", "rate", "readout"], ["accuracy", "dead", "sweep"]], width_ratios=[2.2, 1.0, 1.0]
    )
    _accuracy(panels["accuracy"], jobs, series, _source(config, grid))
    _metric(panels["rate"], jobs, series, "hidden_effective_lr", "effective learning rate, hidden", log=True)
    _metric(panels["readout"], jobs, series, "readout_norm_ratio", "readout norm / initial norm", log=True)
    _metric(panels["dead"], jobs, series, "dead_units", "dead units", log=False)
    if grid is None:
        _metric(panels["sweep"], jobs, series, "effective_rank", "effective rank of the features", log=False)
    else:
        _sweep(panels["sweep"], config, grid)
    figure.suptitle(
        f"New random labels every task: {config.images} {config.dataset} images, {config.steps} Adam steps per task, "
        f"MLP {config.depth} × {config.width}, {config.seeds} seeds, bands are 95 % intervals",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def _source(config: Config, grid: dict[str, Any] | None) -> str:
    """Where the rates come from."""
    if grid is None:
        return "one for all arms"
    return "each arm's best in the sweep" + ("" if grid["dataset"] == config.dataset else f" on {grid['dataset']}")


def _accuracy(axes: Axes, jobs: list[Job], series: Mapping[Job, Series], source: str) -> None:
    ends = {job: float(_curve(axes, job, _smooth(series[job]["online_accuracy"]))[-1]) for job in jobs}
    axes.axhline(CHANCE, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.text(0.01, CHANCE, "chance", color="#888888", va="bottom", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set(xlabel="task", ylabel="online accuracy (each batch before it is learned)")
    axes.set_ylim(0, 1.05 * max(max(ends.values()), axes.get_ylim()[1] / 1.05))
    axes.set_title("Who still learns after many tasks?", loc="left", fontweight="bold")
    _bare(axes)
    # The names stand at the ends of their curves, in their order: no legend to look up.
    for job, height in zip(ends, _apart(list(ends.values()), LABEL_GAP * axes.get_ylim()[1]), strict=True):
        style, right = STYLES[job[0]], axes.get_xlim()[1]
        axes.plot(
            [right, right * 1.035],
            [ends[job], height],
            color=style.color,
            linewidth=0.8,
            linestyle=style.dashes,
            clip_on=False,
            scalex=False,
            scaley=False,
        )
        text = f" {ARMS[job[0]].label}  ({job[1]:g})"
        weight = "bold" if style.bold else "normal"
        axes.text(right * 1.035, height, text, color=style.color, va="center", fontsize=9.5, fontweight=weight)
    note = f"in brackets: learning rate,\n{source}"
    axes.text(1.05, 0.02, note, transform=axes.transAxes, fontsize=8.5, color="#666666")


def _apart(heights: list[float], gap: float) -> list[float]:
    """Moves heights so that neighbours are at least `gap` apart, keeping their order and their mean."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []

    def bottom(group: list[int]) -> float:
        return sum(heights[i] for i in group) / len(group) - gap * (len(group) - 1) / 2

    for i in order:
        groups.append([i])
        while len(groups) > 1 and bottom(groups[-2]) + gap * len(groups[-2]) > bottom(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    placed = {i: bottom(group) + gap * rank for group in groups for rank, i in enumerate(group)}
    return [placed[i] for i in range(len(heights))]


def _metric(axes: Axes, jobs: list[Job], series: Mapping[Job, Series], name: str, title: str, *, log: bool) -> None:
    for job in jobs:
        _curve(axes, job, _smooth(series[job][name]))
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xlabel("task")
    _bare(axes)


def _sweep(axes: Axes, config: Config, grid: dict[str, Any]) -> None:
    for arm in config.arms:
        results = sorted((r for r in grid["results"] if r["arm"] == arm), key=lambda r: r["learning_rate"])
        rates = [r["learning_rate"] for r in results]
        means = np.array([r["online_accuracy"]["mean"] for r in results])
        style = STYLES[arm]
        axes.plot(rates, means, color=style.color, linestyle=style.dashes, marker="o", markersize=3, linewidth=1.3)
        best = int(means.argmax())
        axes.plot(rates[best], means[best], "o", color=style.color, markersize=7)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylim=(0, None))
    on = "" if grid["dataset"] == config.dataset else f" on {grid['dataset']}"
    axes.set_title(f"sweep{on}: mean online accuracy", loc="left", fontsize=10.5)
    _bare(axes)


def _curve(axes: Axes, job: Job, values: np.ndarray) -> np.ndarray:
    """Mean over seeds and its 95 % t interval, task by task."""
    style, tasks, seeds = STYLES[job[0]], np.arange(1, len(values) + 1), values.shape[1]
    mean = values.mean(axis=1)
    axes.plot(tasks, mean, color=style.color, linestyle=style.dashes, linewidth=2.6 if style.bold else 1.8)
    if seeds > 1:
        half = stats.t.ppf(0.975, seeds - 1) * values.std(axis=1, ddof=1) / np.sqrt(seeds)
        axes.fill_between(tasks, mean - half, mean + half, color=style.color, alpha=0.15, linewidth=0)
    return mean


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a few neighbouring tasks: labels differ in difficulty, which is not the point."""
    reach = len(values) // 60
    return np.stack([values[max(0, i - reach) : i + reach + 1].mean(axis=0) for i in range(len(values))])


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
