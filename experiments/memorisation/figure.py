"""The figure of a run: how much the choice of an intervention decides without and with NaP, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.memorisation.arms import ARMS, INTERVENTIONS
from experiments.memorisation.config import Settings
from experiments.memorisation.report import title
from experiments.memorisation.summary import Pair, best, key, pairs, spread
from experiments.plasticity.summary import Job, Series

# Okabe and Ito's colours, which colour-blind readers tell apart.
WITHOUT, NAP, NORM = "#777777", "#D55E00", "#0072B2"
# The three that the mechanism is about: arm, colour, name.
SHOWN = (("none", "#000000", "no norm"), ("ln", NORM, "layer norm"), ("none_nap", NAP, "NaP"))
CHANCE = 0.1


def draw(path: Path, settings: Settings, series: Mapping[Job, Series]) -> None:
    """Draws a row of panels for each network, each arm at its best rate of the run.

    Args:
      path: PNG to write.
      settings: Of the run.
      series: Recorded metrics by arm and rate.
    """
    names = list(settings.streams)
    figure = Figure(figsize=(14, 0.6 + 4.1 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(names), 1, squeeze=False)[:, 0]
    chosen = best(series)
    for name, row in zip(names, rows, strict=True):
        row.suptitle(title(settings, name), fontsize=11, fontweight="bold", x=0.01, ha="left")
        grid, curves, norm, rate = row.subplots(1, 4, width_ratios=[1.75, 1.25, 0.9, 0.9])
        _grid(grid, pairs(series, name), series, name)
        of_network = {arm: chosen[key(name, arm)] for arm in ARMS if key(name, arm) in chosen}
        _curves(curves, of_network)
        _mechanism(norm, of_network, "hidden_norm_ratio", "norm of hidden weights / initial", log=False)
        _mechanism(rate, of_network, "hidden_effective_lr", "their effective learning rate", log=True)
        if name == names[-1]:
            figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)


def _grid(axes: Axes, found: Sequence[Pair], series: Mapping[Job, Series], network: str) -> None:
    both = spread(series, network)
    for place, pair in enumerate(reversed(found)):
        values = [(row, color) for row, color in ((pair.without, WITHOUT), (pair.nap, NAP)) if row is not None]
        if len(values) == 2:
            ends = [row.online_last.mean for row, _ in values]
            axes.annotate(
                "",
                xy=(ends[1], place),
                xytext=(ends[0], place),
                arrowprops={"arrowstyle": "->", "color": "#999999", "shrinkA": 4, "shrinkB": 4},
            )
        for row, color in values:
            mean, half = row.online_last
            axes.errorbar(mean, place, xerr=np.nan_to_num(half), fmt="o", color=color, markersize=7, capsize=2)
    # The span of the interventions: what the reader should see first.
    if both is not None:
        kept = [pair for pair in found if pair.intervention in both.interventions]
        for rows, color, text in (
            ([pair.without for pair in kept], WITHOUT, f"without NaP: {both.without.mean:.2f} from worst to best"),
            ([pair.nap for pair in kept], NAP, f"with NaP: {both.nap.mean:.2f}"),
        ):
            means = [row.online_last.mean for row in rows if row is not None]
            axes.axvspan(min(means), max(means), color=color, alpha=0.13, linewidth=0)
            height = len(found) - (0.35 if color == WITHOUT else -0.2)
            axes.text(min(means), height, text, color=color, va="bottom", fontsize=10, fontweight="bold")
    axes.axvline(CHANCE, color="#bbbbbb", linewidth=1, linestyle=":")
    labels = [INTERVENTIONS[pair.intervention].label for pair in reversed(found)]
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(-0.6, len(found) + 0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel("online accuracy over the last tasks")
    _bare(axes)


def _curves(axes: Axes, chosen: Mapping[str, Series]) -> None:
    for arm, values in chosen.items():
        mean = _smooth(values["online_accuracy"].mean(axis=1))
        axes.plot(np.arange(1, len(mean) + 1), mean, color=NAP if ARMS[arm].nap else WITHOUT, alpha=0.5, linewidth=0.9)
    for arm, color, name in SHOWN:
        if arm in chosen:
            mean = _smooth(chosen[arm]["online_accuracy"].mean(axis=1))
            axes.plot(np.arange(1, len(mean) + 1), mean, color=color, linewidth=2.4, label=name)
    axes.plot([], [], color=WITHOUT, alpha=0.6, linewidth=0.9, label="interventions without NaP")
    axes.plot([], [], color=NAP, alpha=0.6, linewidth=0.9, label="interventions with NaP")
    axes.axhline(CHANCE, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set(xlabel="task", ylim=(0, None))
    axes.set_title("online accuracy", loc="left", fontsize=10)
    _bare(axes)


def _mechanism(axes: Axes, chosen: Mapping[str, Series], metric: str, heading: str, *, log: bool) -> None:
    for arm, color, _ in SHOWN:
        if arm in chosen:
            mean = chosen[arm][metric].mean(axis=1)
            axes.plot(np.arange(1, len(mean) + 1), mean, color=color, linewidth=2)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("task")
    axes.set_title(heading, loc="left", fontsize=10)
    _bare(axes)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a few neighbouring tasks: labels differ in difficulty, which is not the point."""
    reach = len(values) // 30
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
