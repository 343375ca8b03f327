"""The figure of a run: accuracy over batch sizes, accuracy under corruptions, and what NaP changes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.image_classification.arms import ARMS, NAP
from experiments.image_classification.config import Config
from experiments.image_classification.corruptions import CORRUPTIONS
from experiments.image_classification.summary import Found, Job, at_reference, pairs, under_corruptions
from experiments.statistics import t_interval


class Style(NamedTuple):
    """How one arm is drawn; colours are Okabe and Ito's, which colour-blind readers tell apart."""

    color: str
    dashes: Any = "-"
    width: float = 1.4


_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1.2, 1.2))
STYLES: Mapping[str, Style] = {
    "bn": Style("#000000", width=2.6),
    "gn": Style("#0072B2"),
    "gn_ws": Style("#0072B2", _DASHED),
    "bcn_ws": Style("#D55E00", _DASHED),
    "bcn_ws_micro": Style("#D55E00", width=2.6),
    "ibn_a": Style("#666666", _DOTTED),
    "evo_norm": Style("#009E73"),
    "nf": Style("#999999", _DASHED),
    "ln": Style("#56B4E9"),
    "vit_ln": Style("#0072B2"),
    "vit_rms": Style("#E69F00"),
    "vit_dyt": Style("#CC79A7"),
}
# Distance of neighbouring names, as a fraction of the height of the axes.
LABEL_GAP = 0.045


def draw(path: Path, config: Config, found: Mapping[Job, Found]) -> None:
    """Draws all arms.

    Args:
      path: PNG to write.
      config: The run.
      found: Records by job.
    """
    figure = Figure(figsize=(16, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["residual", "transformer", "corrupted"], ["residual", "nap", "corrupted"]],
        width_ratios=[1.25, 1.0, 1.55],
        height_ratios=[1.5, 1.0],
    )
    for name, adam, title in (("residual", False, "residual networks"), ("transformer", True, "vision transformers")):
        drawn = [arm for arm in STYLES if arm in config.arms and ARMS[arm].adam == adam]
        _over_batches(panels[name], config, found, drawn)
        panels[name].set_title(f"{title} as batches shrink")
    _corrupted(panels["corrupted"], config, found)
    _nap(panels["nap"], config, found)
    for panel in panels.values():
        panel.set_visible(panel.has_data())
    figure.savefig(path, dpi=110)


def _over_batches(panel: Axes, config: Config, found: Mapping[Job, Found], arms: Iterable[str]) -> None:
    """Means with intervals, the largest batch on the left and names at the smallest, where arms differ most."""
    sizes = sorted(config.batch_sizes, reverse=True)
    by_place = {(job.arm, job.batch_size): values.series["test"][-1] for job, values in found.items()}
    complete = [arm for arm in arms if all((arm, size) in by_place for size in sizes)]
    ends: dict[str, float] = {}
    for index, arm in enumerate(complete):
        intervals = [t_interval(by_place[arm, size]) for size in sizes]
        means, widths = (np.array(column) for column in zip(*intervals, strict=True))
        style = STYLES[arm]
        # Side by side, so that intervals do not cover each other.
        places = np.arange(len(sizes)) + 0.04 * (index - len(complete) / 2)
        options = {"color": style.color, "linewidth": style.width}
        panel.plot(places, means, linestyle=style.dashes, marker="o", markersize=3.5, **options)
        bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 1.0, "capsize": 2, "alpha": 0.45}
        panel.errorbar(places, means, yerr=np.nan_to_num(widths), **bars)
        ends[arm] = float(means[-1])
    panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    panel.set(xlabel="images per step", ylabel="test accuracy")
    panel.set_xlim(-0.3, len(sizes) - 0.7 + 0.8 * len(sizes))
    panel.grid(alpha=0.3)
    _name(panel, ends, len(sizes) - 0.75)


def _name(panel: Axes, ends: Mapping[str, float], x: float) -> None:
    """Writes each arm's name beside its last point."""
    low, high = panel.get_ylim()
    # Few arms stand in a low panel, where a line of text takes more of the height.
    gap = LABEL_GAP * (high - low) * (1 if len(ends) > 4 else 2)
    for (arm, end), height in zip(ends.items(), _spread(list(ends.values()), gap), strict=True):
        style = STYLES[arm]
        panel.plot([x, x + 0.2], [end, height], color=style.color, linewidth=0.6)
        weight = "bold" if style.width > 2 else "normal"
        panel.text(x + 0.25, height, ARMS[arm].label, color=style.color, fontsize=9, va="center", weight=weight)


def _spread(heights: Sequence[float], gap: float) -> np.ndarray:
    """The heights moved apart to at least `gap`, in their order."""
    order = np.argsort(heights)
    placed = np.asarray(heights, np.float64)[order]
    for _ in range(200):
        overlap = np.maximum(gap - np.diff(placed), 0)
        placed[:-1] -= overlap / 2
        placed[1:] += overlap / 2
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _corrupted(panel: Axes, config: Config, found: Mapping[Job, Found]) -> None:
    """A table in colours: loss of accuracy in points against clean images, and the accuracy on these."""
    names, labels, cells = ("clean", *CORRUPTIONS), [], []
    for arm, values in at_reference(found, config).items():
        if arm.endswith(NAP) or not values.corrupted:
            continue
        for way, by_name in under_corruptions(values).items():
            labels.append(ARMS[arm].label + (", estimated anew" if way == "estimated anew" else ""))
            cells.append([100 * float(np.mean(by_name[name])) for name in names])
    accuracies = np.array(cells).reshape(-1, len(names))
    panel.set_title("test accuracy in % on corrupted images\n(colour: points lost against clean ones)")
    panel.set_xticks(range(len(names)), names, fontsize=9)
    panel.xaxis.tick_top()
    panel.set_yticks(range(len(labels)), labels, fontsize=9)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if "anew" in label.get_text() else "normal")
    if not labels:
        return
    lost = accuracies[:, :1] - accuracies
    panel.imshow(lost, cmap="OrRd", aspect="auto", vmin=0, vmax=max(float(lost.max()), 1.0))
    for row, column in np.ndindex(accuracies.shape):
        dark = lost[row, column] > 0.6 * lost.max()
        panel.text(
            column,
            row,
            f"{accuracies[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )


def _nap(panel: Axes, config: Config, found: Mapping[Job, Found]) -> None:
    compared = pairs(found, config)
    for place, pair in enumerate(compared):
        mean, width = 100 * pair.difference.mean, 100 * np.nan_to_num(pair.difference.half_width)
        panel.errorbar(mean, place, xerr=width, fmt="o", color="#0072B2", capsize=3)
    if compared:
        panel.axvline(0, color="#000000", linewidth=0.8)
    labels = [f"{ARMS[pair.arm].label}\n(norms grow {pair.growth.mean:.2f}-fold without)" for pair in compared]
    panel.set_yticks(range(len(compared)), labels, fontsize=9)
    panel.set_ylim(-0.5, max(len(compared), 1) - 0.5)
    panel.set(title="with NaP minus without", xlabel=f"test accuracy in points, batch {config.reference_batch}")
    panel.grid(alpha=0.3, axis="x")
