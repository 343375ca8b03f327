"""From recorded chunks to one row per arm, with confidence intervals over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.language_model.config import Config
from experiments.language_model.training import METRICS
from experiments.statistics import Interval, t_interval

# A loss is a spike where it is this many bits per byte above the median of as many steps before it.
SPIKE_BITS, SPIKE_WINDOW = 1.0, 16

Series = dict[str, np.ndarray]


class Row(NamedTuple):
    """One arm at one learning rate.

    Attributes:
      arm: Its name.
      learning_rate: The highest of the schedule.
      validation: Bits per byte on held-out text at the end.
      train: The same on the batches of the last chunk, before they are learned.
      spikes: Steps whose loss is a spike, a mean over seeds.
      worst: Largest rise of a loss above the median before it, in bits, over all seeds.
      gradient_first: Gradient norm of the last block over that of the first, in the first chunk.
      gradient_last: The same in the last chunk.
      growth: Norms of the blocks' matrices over their initial ones at the end.
      effective_lr: Their effective learning rate then: the nominal one over the growth.
      rotation: Angle in radians that they turn per step at the end.
    """

    arm: str
    learning_rate: float
    validation: Interval
    train: Interval
    spikes: float
    worst: float
    gradient_first: float
    gradient_last: float
    growth: float
    effective_lr: float
    rotation: float


def collect(records: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Series]:
    """Sorts records into arrays by arm, `(chunks, rates, seeds, ...)`; the loss is `(steps, rates, seeds)`.

    Null, which stands for what was not finite, becomes NaN.
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["chunk"]] = record
    runs = (len(config.rates), config.seeds)

    def series(chunks: dict[int, Mapping[str, Any]]) -> Series:
        arrays = {name: np.array([chunks[i][name] for i in sorted(chunks)], np.float64) for name in METRICS}
        arrays = {name: a.reshape(a.shape[0], *runs, *a.shape[2:]) for name, a in arrays.items()}
        arrays["loss"] = np.moveaxis(arrays["loss"], -1, 1).reshape(-1, *runs)
        return arrays

    return {arm: series(by_arm[arm]) for arm in config.arms if arm in by_arm}


def rises(losses: np.ndarray) -> np.ndarray:
    """How far each loss is above the median of the `SPIKE_WINDOW` steps before it, `(steps, ...)`; NaN is infinite."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    result = np.zeros_like(finite)
    for step in range(SPIKE_WINDOW, len(finite)):
        before = np.median(finite[step - SPIKE_WINDOW : step], axis=0)
        # Where the median is infinite already, the loss has long left: every step counts.
        result[step] = np.where(np.isfinite(before), finite[step] - np.where(np.isfinite(before), before, 0), np.inf)
    return result


def summarize(series: Mapping[str, Series], config: Config) -> list[Row]:
    """One row per arm and rate, the low rate of all arms first."""
    return [
        _row(arm, rate, {name: values[:, i] for name, values in found.items()})
        for i, rate in enumerate(config.rates)
        for arm, found in series.items()
    ]


def _row(arm: str, rate: float, found: Series) -> Row:
    steps = len(found["loss"]) // len(found["validation"])
    risen = rises(found["loss"])
    first, last = found["gradient"][..., 0], found["gradient"][..., -1]
    # A network that has died has gradients of exactly zero, and no balance.
    balance = np.divide(last, first, out=np.full_like(last, np.nan), where=first > 0)
    return Row(
        arm=arm,
        learning_rate=rate,
        validation=t_interval(found["validation"][-1]),
        train=t_interval(np.mean(found["loss"][-steps:], axis=0)),
        spikes=float(np.mean(np.sum(risen > SPIKE_BITS, axis=0))),
        worst=float(np.max(risen)),
        gradient_first=float(np.mean(balance[0])),
        gradient_last=float(np.mean(balance[-1])),
        growth=float(np.mean(found["growth"][-1])),
        effective_lr=float(np.mean(found["effective_lr"][-1])),
        rotation=float(np.mean(found["rotation"][-1])),
    )
