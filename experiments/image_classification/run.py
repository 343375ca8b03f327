"""From a configuration to a folder of results, resumable at any moment."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import UsageError, data, records, runs
from experiments.checkpoints import Checkpoints
from experiments.data import Images
from experiments.image_classification import figure, report, summary, sweep, training
from experiments.image_classification.arms import ARMS
from experiments.image_classification.config import Config
from experiments.image_classification.corruptions import corrupted
from experiments.image_classification.sets import Sets, load
from experiments.image_classification.summary import Job

KEYS = ("arm", "batch_size", "learning_rate", "chunk")


def run(config: Config, console: Console | None = None) -> Path:
    """Runs the experiment, or what is left of it, and writes its results.

    Args:
      config: What to run.
      console: Where progress and the summary go; standard output by default.

    Returns:
      The folder with `config.json`, `metrics.jsonl`, `summary.json`, `summary.md` and `figure.png`; a sweep has no
      figure.

    Raises:
      UsageError: If something in the configuration cannot be run.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    console = console or runs.default_console()
    folder, config, jobs = _resumed(config.resume, config) if config.resume else _planned(config)
    if config.devices > jax.device_count():
        raise UsageError(f"--devices {config.devices}, but there are {jax.device_count()}.")
    sets = load(config)
    if not (folder / "config.json").exists():
        _write_config(folder, config, jobs, sets)
    sizes = ", ".join(f"{len(part.labels):,}" for part in sets[:3])
    console.print(
        f"{config.dataset}: {sizes} images to learn, for validation and to test\nresults go to [bold]{folder}[/bold] "
        f"(if interrupted: --resume {folder})",
        highlight=False,
    )
    _train(config, jobs, sets, folder, console)
    _conclude(config, folder, console)
    return folder


def _planned(config: Config) -> tuple[Path, Config, list[Job]]:
    config = config.resolved()
    if config.sweep:
        config = dataclasses.replace(config, first_seed=config.first_seed + sweep.SEED_OFFSET)
    # Before the sweep is looked for: a dataset that does not exist is not to be swept.
    data.require_available(config.dataset, config.data_dir)
    jobs = planned_jobs(config)
    kind = "-sweep" if config.sweep else ""
    name = config.run or f"{sweep.NAME}-{config.dataset.replace('/', '_')}{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config, jobs


def planned_jobs(config: Config) -> list[Job]:
    """What a run consists of: every arm at every batch size, the largest first; a sweep, at every rate.

    Raises:
      UsageError: If a sweep is needed and there is none, or it lacks an arm.
    """
    reference = config.reference_batch
    if config.sweep:
        grids = {arm: config.adam_rates if ARMS[arm].adam else config.sgd_rates for arm in config.arms}
        return [Job(arm, reference, rate) for arm in config.arms for rate in sorted(grids[arm])]
    rates = sweep.rates(config)
    return [
        Job(arm, batch, ARMS[arm].rate(rates[arm], batch, reference))
        for arm in config.arms
        for batch in (sorted(config.batch_sizes, reverse=True) if ARMS[arm].every_batch else [reference])
    ]


def _write_config(folder: Path, config: Config, jobs: Sequence[Job], sets: Sets) -> None:
    stored = {
        "experiment": sweep.NAME,
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "splits": sets.splits,
        "config": config,
        "jobs": [job._asdict() for job in jobs],
    }
    records.write_json(folder / "config.json", stored)


def _stored(folder: Path) -> dict[str, Any]:
    return runs.read_config(folder, sweep.NAME, ("config", "jobs", "environment", "command"))


def _resumed(folder: Path, config: Config) -> tuple[Path, Config, list[Job]]:
    stored = _stored(folder)
    restored = runs.from_json(Config, stored["config"])
    runs.check_resumable(config, restored)
    return folder, restored, [Job(**job) for job in stored["jobs"]]


def _train(config: Config, jobs: Sequence[Job], sets: Sets, folder: Path, console: Console) -> None:
    path = folder / "metrics.jsonl"
    known = {tuple(line[key] for key in KEYS): line for line in records.read_lines(path)}
    grid = training.all_runs(config, len(sets.train.labels))
    columns = (
        TextColumn("{task.description:>32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks, {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    trainers: dict[tuple[str, int], training.Trainer] = {}
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(jobs) * config.chunks, accuracy="compiling")
        for index, job in enumerate(jobs):
            label = f"{ARMS[job.arm].label}, batch {job.batch_size}"
            progress.update(bar, description=label, completed=index * config.chunks)
            if all((*job, chunk) in known for chunk in range(config.chunks)):
                continue
            began, place = time.monotonic(), (job.arm, job.batch_size)
            if place not in trainers:
                # Only the newest: what other jobs compiled is not needed again.
                trainers = {place: training.make_trainer(ARMS[job.arm], config, sets, job.batch_size)}
            rate, trainer = jnp.float32(job.learning_rate), trainers[place]
            started = trainer.init(grid, rate)
            # Leaves alone: boxes and their metadata are made again by `init`.
            leaves, structure = jax.tree.flatten(started)
            first, leaves = checkpoints.restore(index, leaves)
            state, accuracy = structure.unflatten(leaves), 0.0
            for chunk in range(first, config.chunks):
                state, measured = trainer.learn(state, grid, rate, jnp.int32(chunk))
                record: dict[str, Any] = {**job._asdict(), "chunk": chunk}
                record |= {name: np.asarray(values) for name, values in measured.items()}
                if chunk + 1 == config.chunks:
                    record |= _at_the_end(config, job, sets, trainer, started, state)
                runs.report_once(path, records.plain(record), known, KEYS, console)
                if (chunk + 1) % config.checkpoint_every == 0:
                    checkpoints.save(index, chunk + 1, jax.tree.leaves(state))
                accuracy = float(record["test"].mean())
                done = index * config.chunks + chunk + 1
                progress.update(bar, completed=done, accuracy=f"test accuracy {accuracy:.3f}")
            seconds = time.monotonic() - began
            progress.print(f"{label:>40}: test accuracy {accuracy:.3f}, {seconds:.0f} s", highlight=False)


def _at_the_end(
    config: Config, job: Job, sets: Sets, trainer: training.Trainer, started: Any, state: Any
) -> dict[str, Any]:
    """Growth of the weights and, at the reference batch of a run that is no sweep, accuracies under corruptions."""
    found: dict[str, Any] = {"growth": training.growth(started.params, state.params), "corrupted": {}, "estimated": {}}
    if config.sweep or job.batch_size != config.reference_batch:
        return found
    for name, images in corrupted(sets.test.images).items():
        batches = training.batched(Images(images, sets.test.labels), sets)
        found["corrupted"][name] = np.asarray(trainer.accuracy(state, *batches))
        if ARMS[job.arm].estimated:
            inputs = training.standardized(images, sets)
            anew = training.estimated_anew(trainer, state, inputs, training.EVALUATED)
            found["estimated"][name] = np.asarray(trainer.accuracy(anew, *batches))
    return found


def _conclude(config: Config, folder: Path, console: Console) -> None:
    stored = _stored(folder)
    found = summary.collect(records.read_lines(folder / "metrics.jsonl"))
    rows = summary.summarize(found, config)
    if config.sweep:
        path = config.sweep_file or sweep.default_file(config.dataset)
        recorded = {**stored["environment"], "command": stored["command"]}
        sweep.write(path, config, rows, recorded)
        console.print(f"sweep written to [bold]{path}[/bold]", highlight=False)
    report.write(folder, config, found, rows, console)
    if not config.sweep:
        figure.draw(folder / "figure.png", config, found)
        console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
