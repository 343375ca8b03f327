"""From recorded tasks to one row per arm and rate, and to what the choice of an intervention changes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import runs
from experiments.memorisation.arms import ARMS, INTERVENTIONS, with_nap
from experiments.plasticity.summary import Job, Series, best_jobs, window
from experiments.plasticity.training import METRICS
from experiments.statistics import Interval, t_interval


class Row(NamedTuple):
    """One arm of one network at one learning rate; "first" and "last" are the first and last sixth of the tasks.

    Attributes:
      arm: Network and arm, `mlp/l2_nap`.
      learning_rate: Its rate.
      online: Mean accuracy on batches before they are learned, over all tasks.
      online_first: The same over the first tasks.
      online_last: The same over the last tasks.
      change: Last minus first, paired by seed.
      final_first: Accuracy at the end of a task, over the first tasks.
      final_last: The same over the last tasks.
      first: Mean of every metric over the first tasks.
      last: Mean of every metric over the last tasks.
    """

    arm: str
    learning_rate: float
    online: Interval
    online_first: Interval
    online_last: Interval
    change: Interval
    final_first: Interval
    final_last: Interval
    first: dict[str, float]
    last: dict[str, float]


class Pair(NamedTuple):
    """One row of the grid.

    Attributes:
      network: Its network.
      intervention: Its intervention.
      without: Row without NaP; `None` where it was not run.
      nap: Row with NaP; for the norm alone, that of NaP alone.
      gap: Online accuracy over the last tasks with NaP minus without, paired by seed.
    """

    network: str
    intervention: str
    without: Row | None
    nap: Row | None
    gap: Interval | None


class Spread(NamedTuple):
    """How much the choice of an intervention decides, over those that were run both without and with NaP.

    Attributes:
      interventions: Which these are; the norm alone, which has no NaP of its own, is not one.
      without: Best minus worst online accuracy over the last tasks, without NaP.
      nap: The same with NaP.
      deviation_without: Standard deviation over the interventions, without NaP.
      deviation_nap: The same with NaP.
    """

    interventions: tuple[str, ...]
    without: Interval
    nap: Interval
    deviation_without: Interval
    deviation_nap: Interval


def key(network: str, arm: str) -> str:
    """The name of an arm of a network in records and sweeps."""
    return f"{network}/{arm}"


def collect(records: Sequence[Mapping[str, Any]]) -> dict[Job, Series]:
    """Sorts records into arrays `(tasks, seeds)` of every metric."""
    return runs.series_by_job(records, "task", METRICS)


def best(series: Mapping[Job, Series]) -> dict[str, Series]:
    """Each arm at its rate of highest mean online accuracy."""
    return {arm: series[job] for arm, job in best_jobs(series).items()}


def summarize(series: Mapping[Job, Series]) -> list[Row]:
    """One row per job."""
    return [_row(job, values) for job, values in series.items()]


def _row(job: Job, values: Series) -> Row:
    online, final = values["online_accuracy"], values["final_accuracy"]
    size = window(len(online))
    first, last = online[:size].mean(axis=0), _last(values)
    return Row(
        arm=job[0],
        learning_rate=job[1],
        online=t_interval(online.mean(axis=0)),
        online_first=t_interval(first),
        online_last=t_interval(last),
        change=t_interval(last - first),
        final_first=t_interval(final[:size].mean(axis=0)),
        final_last=t_interval(final[-size:].mean(axis=0)),
        first={name: float(values[name][:size].mean()) for name in METRICS},
        last={name: float(values[name][-size:].mean()) for name in METRICS},
    )


def _last(values: Series) -> np.ndarray:
    """Online accuracy over the last tasks, by seed."""
    online = values["online_accuracy"]
    return online[-window(len(online)) :].mean(axis=0)


def pairs(series: Mapping[Job, Series], network: str) -> list[Pair]:
    """The grid of a network, at the best rate of each arm.

    Args:
      series: Recorded metrics by arm and rate.
      network: Its name.

    Returns:
      A pair for each intervention of which something was run.
    """
    chosen = best_jobs(series)
    found = {arm: chosen[key(network, arm)] for arm in ARMS if key(network, arm) in chosen}
    grid = []
    for name in INTERVENTIONS:
        without, nap = found.get(name), found.get(with_nap(name))
        # A row of NaP alone is that of no intervention, not one that stands for the norm without it.
        if without is None and (nap is None or with_nap(name) != name + "_nap"):
            continue
        gap = None if without is None or nap is None else t_interval(_last(series[nap]) - _last(series[without]))
        rows = [None if job is None else _row(job, series[job]) for job in (without, nap)]
        grid.append(Pair(network, name, rows[0], rows[1], gap))
    return grid


def spread(series: Mapping[Job, Series], network: str) -> Spread | None:
    """The spread of a network's interventions; `None` if fewer than two were run both ways.

    Args:
      series: Recorded metrics by arm and rate.
      network: Its name.

    Returns:
      Intervals over seeds, each of which has a spread of its own.
    """
    chosen = best(series)
    both = [
        name
        for name, row in INTERVENTIONS.items()
        if not row.normalized and {key(network, name), key(network, with_nap(name))} <= set(chosen)
    ]
    if len(both) < 2:
        return None
    without = np.stack([_last(chosen[key(network, name)]) for name in both])
    nap = np.stack([_last(chosen[key(network, with_nap(name))]) for name in both])
    return Spread(
        tuple(both),
        t_interval(np.ptp(without, axis=0)),
        t_interval(np.ptp(nap, axis=0)),
        t_interval(without.std(axis=0, ddof=1)),
        t_interval(nap.std(axis=0, ddof=1)),
    )
