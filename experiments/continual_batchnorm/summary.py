"""From recorded tasks to one row per arm, with confidence intervals over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.continual_batchnorm.config import Config
from experiments.continual_batchnorm.training import METRICS
from experiments.statistics import Interval, t_interval

# Metrics of an arm by name, `(tasks, settings, seeds, ...)`; the last axis of accuracies is that of the task tested.
Found = dict[str, np.ndarray]


class Row(NamedTuple):
    """One arm at its setting with the best accuracy on the validation images.

    Attributes:
      arm: Its name.
      learning_rate: Chosen.
      auxiliary_weight: Chosen.
      accuracy: On the test images of all tasks, after the last.
      versus_bn: The same minus that of `bn`, paired by seed; `None` for `bn` and without it.
      forgetting: Loss of accuracy since its highest, mean over all tasks but the last.
      learned: Accuracy on the test images of a task right after it, mean over tasks.
      at_edge: Whether the chosen rate is the lowest or highest that was tried.
    """

    arm: str
    learning_rate: float
    auxiliary_weight: float
    accuracy: Interval
    versus_bn: Interval | None
    forgetting: Interval
    learned: Interval
    at_edge: bool


def collect(records: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Found]:
    """Sorts records into arrays by arm; null, which stands for what was not finite, becomes NaN."""
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["task"]] = record

    def found(arm: str) -> Found:
        tasks, runs = by_arm[arm], (len(config.settings(arm)), config.seeds)
        arrays = {name: np.array([tasks[t][name] for t in sorted(tasks)], np.float64) for name in METRICS}
        return {name: a.reshape(a.shape[0], *runs, *a.shape[2:]) for name, a in arrays.items()}

    return {arm: found(arm) for arm in config.arms if arm in by_arm}


def best(found: Found) -> int:
    """The setting with the highest mean accuracy on the validation images after the last task."""
    return int(np.argmax(found["validation"][-1].mean(axis=(-2, -1))))


def forgetting(accuracies: np.ndarray) -> np.ndarray:
    """Mean over all tasks but the last of highest accuracy before the end minus accuracy at the end.

    Args:
      accuracies: `(learned, ..., tested)`.

    Returns:
      `(...)`.

    Example:
      >>> import numpy as np
      >>> float(forgetting(np.array([[0.9, 0.0], [0.6, 0.8]])).round(2))
      0.3

    References:
      Chaudhry et al. 2018, [Riemannian Walk for Incremental Learning](https://arxiv.org/abs/1801.10112).
    """
    return np.mean(np.max(accuracies[:-1, ..., :-1], axis=0) - accuracies[-1, ..., :-1], axis=-1)


def summarize(found: Mapping[str, Found], config: Config) -> list[Row]:
    """One row per arm."""
    tested = {arm: values["test"][:, best(values)] for arm, values in found.items()}
    reference = tested["bn"][-1].mean(axis=-1) if "bn" in tested else None
    return [_row(arm, config, best(found[arm]), values, reference) for arm, values in tested.items()]


def _row(arm: str, config: Config, chosen: int, tested: np.ndarray, reference: np.ndarray | None) -> Row:
    rate, weight = config.settings(arm)[chosen]
    rates = config.learning_rates
    accuracy = tested[-1].mean(axis=-1)
    return Row(
        arm=arm,
        learning_rate=rate,
        auxiliary_weight=weight,
        accuracy=t_interval(accuracy),
        versus_bn=None if reference is None or arm == "bn" else t_interval(accuracy - reference),
        forgetting=t_interval(forgetting(tested)),
        learned=t_interval(np.diagonal(tested, axis1=0, axis2=2).mean(axis=-1)),
        at_edge=len(rates) > 1 and rate in (min(rates), max(rates)),
    )
