"""The figure of a run: accuracy as tasks arrive, what is left of each task, and the rates tried."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.continual_batchnorm.arms import ARMS
from experiments.continual_batchnorm.config import Config
from experiments.continual_batchnorm.summary import Found, best
from experiments.statistics import t_interval

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = dict(zip(ARMS, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True))
DASHES = dict(zip(ARMS, ("-", "-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))), strict=True))


def draw(path: Path, config: Config, found: Mapping[str, Found]) -> None:
    """Draws all arms.

    Args:
      path: PNG to write.
      config: The run.
      found: Recorded metrics by arm.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    tasks = np.arange(1, config.tasks + 1)
    for index, (arm, values) in enumerate(found.items()):
        tested = values["test"][:, best(values)]
        seen = np.stack([tested[t, :, : t + 1].mean(axis=-1) for t in range(len(tested))])
        # Side by side, so that intervals do not cover each other.
        aside = 0.06 * (index - (len(found) - 1) / 2)
        _points(panels[0], arm, tasks + aside, seen.T)
        _points(panels[1], arm, tasks + aside, tested[-1])
        _rates(panels[2], arm, config, values)
    panels[0].set(title="test accuracy on the tasks so far", xlabel="tasks learned", xticks=tasks)
    panels[1].set(title="test accuracy after the last task", xlabel="task", xticks=tasks)
    panels[2].set(title="accuracy on validation images, by rate", xlabel="learning rate", xscale="log")
    panels[2].set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
    panels[2].minorticks_off()
    for panel in panels:
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=110)


def _points(panel: Axes, arm: str, places: np.ndarray, samples: np.ndarray) -> None:
    """Means over seeds of `(seeds, places)` with intervals."""
    intervals = [t_interval(column) for column in samples.T]
    means, widths = (np.array(column) for column in zip(*intervals, strict=True))
    style = {"color": COLORS[arm], "linestyle": DASHES[arm], "label": ARMS[arm].label}
    panel.errorbar(places, means, yerr=np.nan_to_num(widths), fmt="o", capsize=2, markersize=3, linewidth=1.3, **style)


def _rates(panel: Axes, arm: str, config: Config, values: Found) -> None:
    """The best auxiliary weight at each rate."""
    means = values["validation"][-1].mean(axis=(-2, -1)).reshape(len(config.learning_rates), -1).max(axis=1)
    style = {"color": COLORS[arm], "linestyle": DASHES[arm], "marker": "o", "markersize": 4}
    order = np.argsort(config.learning_rates)
    panel.plot(np.asarray(config.learning_rates)[order], means[order], linewidth=1.3, **style)
