"""From records to rows: accuracy by batch size, accuracy under corruptions, and what NaP changes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.image_classification.arms import ARMS, NAP
from experiments.image_classification.config import Config
from experiments.image_classification.training import METRICS
from experiments.statistics import Interval, t_interval


class Job(NamedTuple):
    """All seeds of an arm at one batch size and learning rate."""

    arm: str
    batch_size: int
    learning_rate: float


class Found(NamedTuple):
    """What was recorded of a job.

    Attributes:
      series: Metrics by name, `(chunks, seeds)`.
      growth: Norms of the hidden weights over their first ones at the end, `(seeds,)`.
      corrupted: Test accuracies at the end by name of `corruptions.corrupted`, `(seeds,)`; empty but at the reference.
      estimated: The same with running statistics estimated from the corrupted images; empty where there are none.
    """

    series: Mapping[str, np.ndarray]
    growth: np.ndarray
    corrupted: Mapping[str, np.ndarray]
    estimated: Mapping[str, np.ndarray]


class Row(NamedTuple):
    """A job at its end.

    Attributes:
      job: Arm, batch size and rate.
      test: Test accuracy.
      validation: Validation accuracy.
      versus_bn: Test accuracy minus that of `bn` at the same batch size, paired by seed; `None` where there is none.
      versus_reference: The same minus that of the arm itself at the reference batch.
      diverged: Seeds whose loss was not finite.
    """

    job: Job
    test: Interval
    validation: Interval
    versus_bn: Interval | None
    versus_reference: Interval | None
    diverged: int


class Pair(NamedTuple):
    """An arm with and without NaP, at the reference batch.

    Attributes:
      arm: Without.
      without, with_nap: Test accuracies.
      difference: With minus without, paired by seed.
      growth: Norms of the hidden weights over their first ones at the end, without NaP.
      growth_with_nap: With NaP, which leaves some weights free in the transformer.
    """

    arm: str
    without: Interval
    with_nap: Interval
    difference: Interval
    growth: Interval
    growth_with_nap: Interval


def collect(lines: Sequence[Mapping[str, Any]]) -> dict[Job, Found]:
    """Sorts records by job; null, which stands for what was not finite, becomes NaN."""
    by_job: dict[Job, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        job = Job(line["arm"], line["batch_size"], line["learning_rate"])
        by_job.setdefault(job, {})[line["chunk"]] = line
    return {job: _found([chunks[i] for i in sorted(chunks)]) for job, chunks in by_job.items()}


def _found(chunks: Sequence[Mapping[str, Any]]) -> Found:
    def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(value, np.float64) for name, value in values.items()}

    last = chunks[-1]
    series = {name: np.asarray([chunk[name] for chunk in chunks], np.float64) for name in METRICS}
    growth = np.asarray(last["growth"], np.float64)
    return Found(series, growth, arrays(last["corrupted"]), arrays(last["estimated"]))


def summarize(found: Mapping[Job, Found], config: Config) -> list[Row]:
    """One row per job, in the order of the records."""
    tested = {job: values.series["test"][-1] for job, values in found.items()}
    by_place = {(job.arm, job.batch_size): accuracies for job, accuracies in tested.items()}

    def versus(accuracies: np.ndarray, arm: str, batch_size: int, itself: bool) -> Interval | None:
        other = by_place.get((arm, batch_size))
        return None if other is None or itself else t_interval(accuracies - other)

    return [
        Row(
            job=job,
            test=t_interval(accuracies),
            validation=t_interval(found[job].series["validation"][-1]),
            versus_bn=versus(accuracies, "bn", job.batch_size, job.arm == "bn"),
            versus_reference=versus(
                accuracies, job.arm, config.reference_batch, job.batch_size == config.reference_batch
            ),
            diverged=int(np.sum(~np.isfinite(found[job].series["loss"]).all(axis=0))),
        )
        for job, accuracies in tested.items()
    ]


def at_reference(found: Mapping[Job, Found], config: Config) -> dict[str, Found]:
    """The jobs at the reference batch, by arm."""
    return {job.arm: values for job, values in found.items() if job.batch_size == config.reference_batch}


def under_corruptions(found: Found) -> dict[str, dict[str, np.ndarray]]:
    """Accuracies by corruption, the mean over strengths, `(seeds,)`.

    Args:
      found: Of an arm at the reference batch.

    Returns:
      `"as trained"`, and `"estimated anew"` where there are such statistics; each by `"clean"` and corruption.
    """
    ways = {"as trained": found.corrupted, "estimated anew": found.estimated}
    return {way: _by_corruption(values) for way, values in ways.items() if values}


def _by_corruption(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    strengths: dict[str, list[np.ndarray]] = {}
    for name, accuracies in values.items():
        strengths.setdefault(name.split(" ")[0], []).append(accuracies)
    return {name: np.mean(several, axis=0) for name, several in strengths.items()}


def pairs(found: Mapping[Job, Found], config: Config) -> list[Pair]:
    """The arms that were trained with and without NaP."""
    reference = at_reference(found, config)
    both = [arm for arm in ARMS if arm in reference and arm + NAP in reference]

    def pair(arm: str) -> Pair:
        without, with_nap = (reference[name].series["test"][-1] for name in (arm, arm + NAP))
        return Pair(
            arm,
            t_interval(without),
            t_interval(with_nap),
            t_interval(with_nap - without),
            t_interval(reference[arm].growth),
            t_interval(reference[arm + NAP].growth),
        )

    return [pair(arm) for arm in both]
