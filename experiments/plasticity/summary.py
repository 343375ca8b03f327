"""From recorded tasks to one row per arm and learning rate, with confidence intervals over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import runs
from experiments.plasticity.training import METRICS
from experiments.statistics import Interval, t_interval

Job = tuple[str, float]
Series = dict[str, np.ndarray]


class Row(NamedTuple):
    """One arm at one learning rate; "first" and "last" are the first and last sixth of the tasks.

    Attributes:
      arm: Name of the arm.
      learning_rate: Its rate.
      online: Mean accuracy on batches before they are learned, over all tasks.
      online_first: The same over the first tasks.
      online_last: The same over the last tasks.
      change: Last minus first, paired by seed.
      versus_fresh: Over the last tasks, minus the fresh network on the same tasks, paired by seed; `None` without one.
      final_last: Accuracy at the end of a task, over the last tasks.
      first: Mean of every metric over the first tasks.
      last: Mean of every metric over the last tasks.
    """

    arm: str
    learning_rate: float
    online: Interval
    online_first: Interval
    online_last: Interval
    change: Interval
    versus_fresh: Interval | None
    final_last: Interval
    first: dict[str, float]
    last: dict[str, float]


def collect(records: Sequence[Mapping[str, Any]]) -> dict[Job, Series]:
    """Sorts records into arrays `(tasks, seeds)` of every metric; null becomes NaN."""
    return runs.series_by_job(records, "task", METRICS)


def window(tasks: int) -> int:
    """How many tasks count as the first, and as the last."""
    return max(1, tasks // 6)


def best_jobs(series: Mapping[Job, Series]) -> dict[str, Job]:
    """Each arm's job with the highest mean online accuracy."""
    best: dict[str, Job] = {}
    for job in sorted(series, key=lambda job: job[1]):
        score = series[job]["online_accuracy"].mean()
        if job[0] not in best or score > series[best[job[0]]]["online_accuracy"].mean():
            best[job[0]] = job
    return best


def summarize(series: Mapping[Job, Series]) -> list[Row]:
    """One row per job; the reference of `versus_fresh` is the fresh network at its own best rate."""
    fresh_job = best_jobs(series).get("fresh")
    fresh = None if fresh_job is None else series[fresh_job]["online_accuracy"]
    return [_row(job, values, None if job[0] == "fresh" else fresh) for job, values in series.items()]


def _row(job: Job, values: Series, fresh: np.ndarray | None) -> Row:
    online, final = values["online_accuracy"], values["final_accuracy"]
    size = window(len(online))
    first, last = online[:size].mean(axis=0), online[-size:].mean(axis=0)
    versus = None if fresh is None else t_interval(last - fresh[len(online) - size : len(online)].mean(axis=0))
    return Row(
        arm=job[0],
        learning_rate=job[1],
        online=t_interval(online.mean(axis=0)),
        online_first=t_interval(first),
        online_last=t_interval(last),
        change=t_interval(last - first),
        versus_fresh=versus,
        final_last=t_interval(final[-size:].mean(axis=0)),
        first={name: float(values[name][:size].mean()) for name in METRICS},
        last={name: float(values[name][-size:].mean()) for name in METRICS},
    )
