"""One job after the other: every task of an arm at a rate, reported and checkpointed, resumable at any moment."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from experiments import records, runs
from experiments.checkpoints import Checkpoints
from experiments.plasticity.arms import Arm
from experiments.plasticity.training import Schedule, Trainer, run_task

_KEYS = ("arm", "learning_rate", "task")


class Job(NamedTuple):
    """All tasks of one arm at one rate.

    Attributes:
      name: Of the arm, in the records.
      label: For the reader.
      learning_rate: The rate.
      arm: The method.
      schedule: How long a task is.
      tasks: Their number.
    """

    name: str
    label: str
    learning_rate: float
    arm: Arm
    schedule: Schedule
    tasks: int


def train(
    jobs: Sequence[Job],
    make: Callable[[str], Trainer],
    seeds: Sequence[int],
    folder: Path,
    checkpoint_every: int,
    console: Console,
) -> None:
    """Trains what `folder` does not yet have.

    Args:
      jobs: What is to be there; jobs of the same name follow each other.
      make: The trainer of the arm of that name.
      seeds: Of all jobs.
      folder: Of the run: `metrics.jsonl` and `checkpoints`.
      checkpoint_every: Tasks between checkpoints.
      console: For the progress.
    """
    path = folder / "metrics.jsonl"
    known = {tuple(r[key] for key in _KEYS): r for r in records.read_lines(path)}
    columns = (
        TextColumn("{task.description:>32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks, {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    numbers = jnp.asarray(seeds, jnp.int32)
    # LAPACK's small singular value decompositions, once per task, take a hundred times longer when OpenBLAS threads
    # compete with XLA's for the cores.
    with (
        threadpool_limits(limits=1, user_api="blas"),
        Progress(*columns, console=console) as progress,
        Checkpoints(folder / "checkpoints") as checkpoints,
    ):
        bar = progress.add_task("", total=sum(job.tasks for job in jobs), accuracy="compiling")
        # One arm after the other: the compiled functions of the last one are not needed again.
        trainers: dict[str, Trainer] = {}
        done = 0
        for index, job in enumerate(jobs):
            label = f"{job.label}, lr {job.learning_rate:g}"
            progress.update(bar, description=label, completed=done)
            if not all((job.name, job.learning_rate, task) in known for task in range(job.tasks)):
                if job.name not in trainers:
                    trainers = {job.name: make(job.name)}
                began, accuracy = time.monotonic(), 0.0
                for record in _tasks(job, trainers[job.name], numbers, index, checkpoints, checkpoint_every):
                    runs.report_once(path, records.plain(record), known, _KEYS, console)
                    accuracy = float(record["online_accuracy"].mean())
                    progress.update(bar, completed=done + record["task"] + 1, accuracy=f"online {accuracy:.3f}")
                seconds = time.monotonic() - began
                progress.print(f"{label:>40}: online accuracy {accuracy:.3f} in the last task, {seconds:.0f} s")
            done += job.tasks


def _tasks(
    job: Job, trainer: Trainer, seeds: jax.Array, index: int, checkpoints: Checkpoints, every: int
) -> Iterator[dict[str, Any]]:
    """Trains one job task by task; yields the record of each, and checkpoints once it is reported."""
    rate = jnp.float32(job.learning_rate)
    first, state = checkpoints.restore(index, trainer.init(seeds, rate, jnp.int32(0)))
    for task in range(first, job.tasks):
        state, measured = run_task(job.arm, trainer, job.schedule, state, seeds, rate, jnp.int32(task))
        identity = {"arm": job.name, "learning_rate": job.learning_rate, "task": task}
        yield identity | {name: np.asarray(values) for name, values in measured.items()}
        if (task + 1) % every == 0:
            checkpoints.save(index, task + 1, state)
