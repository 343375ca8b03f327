"""From recorded phases to one row per arm and learning rate, with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import runs
from experiments.minatar.config import Settings
from experiments.minatar.training import METRICS
from experiments.statistics import Estimate, Interval, stratified_bootstrap, t_interval

Job = tuple[str, float]
Series = dict[str, np.ndarray]


class Row(NamedTuple):
    """One arm at one learning rate; a score is the mean return over a phase, the area under its learning curve.

    Attributes:
      arm: Name of the arm.
      learning_rate: Its rate.
      mean: Mean score over all phases and seeds.
      overall: Interquartile mean of the scores of all phases.
      first: The same over the first phases.
      last: The same over the last phases.
      end: Interquartile mean of the return at the end of the last phases.
      change: Mean score of the last phases minus that of the first, paired by seed.
      versus_fresh: Mean score of the last phases minus the fresh network's, paired by seed; `None` without one.
      at_end: Mean of every other metric over the last phases; of curves, their last value.
    """

    arm: str
    learning_rate: float
    mean: float
    overall: Estimate
    first: Estimate
    last: Estimate
    end: Estimate
    change: Interval
    versus_fresh: Interval | None
    at_end: dict[str, float]


def collect(records: Sequence[Mapping[str, Any]]) -> dict[Job, Series]:
    """Sorts records into arrays `(phases, seeds)`, of curves `(phases, seeds, segments)`; null becomes NaN."""
    return runs.series_by_job(records, "phase", METRICS)


def window(settings: Settings) -> int:
    """How many phases count as the first, and as the last: a fifth of them, or one visit of every game."""
    return min(settings.phases, len(settings.games)) if settings.stream == "cycle" else max(1, settings.phases // 5)


def curves(series: Series) -> np.ndarray:
    """Returns `(phases, seeds, segments)`; a segment in which no episode ended repeats the one before, or is 0."""
    values = series["episode_return"].copy()
    values[..., 0] = np.nan_to_num(values[..., 0])
    for i in range(1, values.shape[-1]):
        values[..., i] = np.where(np.isnan(values[..., i]), values[..., i - 1], values[..., i])
    return values


def summarize(series: Mapping[Job, Series], settings: Settings) -> list[Row]:
    """One row per job; games of a cycle are compared in units of the fresh network's score, where it was run.

    Args:
      series: Recorded metrics by arm and rate.
      settings: Of the run.

    Returns:
      The rows, in the order of the jobs.
    """
    scored = {job: curves(values) for job, values in series.items()}
    fresh_job = max((job for job in scored if job[0] == "fresh"), key=lambda job: scored[job].mean(), default=None)
    unit = np.ones(settings.phases)
    if settings.stream == "cycle" and fresh_job is not None:
        unit = np.maximum(scored[fresh_job].mean(axis=(1, 2)), 1e-3)
    scaled = {job: values / unit[: len(values), None, None] for job, values in scored.items()}
    fresh = None if fresh_job is None else scaled[fresh_job]
    size = window(settings)
    return [_row(job, scaled[job], series[job], None if job[0] == "fresh" else fresh, size) for job in series]


def _row(job: Job, values: np.ndarray, series: Series, fresh: np.ndarray | None, size: int) -> Row:
    scores = values.mean(axis=2)
    first, last = scores[:size], scores[-size:]
    versus = None if fresh is None else t_interval((last - fresh.mean(axis=2)[-size:]).mean(axis=0))
    metrics = {name: array[-size:] for name, array in series.items() if name != "episode_return"}
    return Row(
        arm=job[0],
        learning_rate=job[1],
        mean=float(scores.mean()),
        overall=stratified_bootstrap(scores.T),
        first=stratified_bootstrap(first.T),
        last=stratified_bootstrap(last.T),
        end=stratified_bootstrap(values[-size:, :, -1].T),
        change=t_interval((last - first).mean(axis=0)),
        versus_fresh=versus,
        at_end={name: float((a[..., -1] if a.ndim == 3 else a).mean()) for name, a in metrics.items()},
    )
