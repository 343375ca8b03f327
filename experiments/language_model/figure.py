"""The figure of a run: what each arm reaches at both rates, how, and how gradients are balanced over depth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.language_model.config import Config
from experiments.language_model.summary import Series
from experiments.statistics import t_interval

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def draw(path: Path, config: Config, series: Mapping[str, Series]) -> None:
    """Draws all arms.

    Args:
      path: PNG to write.
      config: The run.
      series: Recorded metrics by arm.
    """
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    rows = [["reached", f"curve{i}"] for i in range(len(config.rates))]
    panels = figure.subplot_mosaic([[*row, f"depth{i}"] for i, row in enumerate(rows)], width_ratios=[1.1, 1, 1])
    _reached(panels["reached"], config, series)
    for i, rate in enumerate(config.rates):
        for index, (arm, found) in enumerate(series.items()):
            style = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index // len(COLORS) % len(DASHES)]}
            _curve(panels[f"curve{i}"], config, found["validation"][:, i], arm, style)
            _depth(panels[f"depth{i}"], found["gradient"][-1, i], style)
        panels[f"curve{i}"].set(title=f"held-out text, rate {rate:g}", xlabel="step", ylabel="bits per byte")
        panels[f"depth{i}"].set(title=f"gradient norm at the end, rate {rate:g}", xlabel="block", yscale="log")
        for name in ("curve", "depth"):
            panels[f"{name}{i}"].grid(alpha=0.3)
    handles, labels = panels["curve0"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=130)


def _reached(panel: Axes, config: Config, series: Mapping[str, Series]) -> None:
    """Final bits per byte with intervals, the best arm at the low rate on top; what is off the axis has an arrow."""
    finals = {arm: found["validation"][-1] for arm, found in series.items()}
    ranked = sorted(finals, key=lambda arm: np.mean(finals[arm][0]), reverse=True)
    # Far above the worst arm of the low rate nothing is learned, and how far would only squeeze the rest.
    limit = np.nanmax([np.mean(values[0]) for values in finals.values()]) + 1.5
    for i, rate in enumerate(config.rates):
        intervals = [t_interval(finals[arm][i]) for arm in ranked]
        places = np.arange(len(ranked)) + 0.2 * i
        means = np.array([interval.mean for interval in intervals])
        off = ~(means <= limit)
        widths = np.nan_to_num([interval.half_width for interval in intervals])
        options = {"fmt": "o", "color": COLORS[i], "capsize": 2, "markersize": 4, "label": f"rate {rate:g}"}
        panel.errorbar(means[~off], places[~off], xerr=widths[~off], **options)
        panel.plot(np.full(off.sum(), limit), places[off], ">", color=COLORS[i])
    panel.set_yticks(np.arange(len(ranked)), ranked, fontsize=8)
    panel.set(title="held-out bits per byte at the end", xlabel="bits per byte (triangle: beyond)")
    panel.set_xlim(right=limit + 0.05)
    panel.grid(alpha=0.3)
    panel.legend(loc="best", fontsize=8)


def _curve(panel: Axes, config: Config, values: np.ndarray, arm: str, style: dict) -> None:
    steps = config.chunk * np.arange(1, len(values) + 1)
    # Random bytes cost 8 bits: what is above has left.
    panel.plot(steps, np.minimum(np.mean(values, axis=-1), 8.0), label=arm, linewidth=1.2, **style)


def _depth(panel: Axes, values: np.ndarray, style: dict) -> None:
    norms = np.mean(values, axis=0)
    blocks = np.arange(1, len(norms) + 1)
    panel.plot(blocks, norms, linewidth=1.2, **style)
    panel.set_xticks(blocks)
