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
from threadpoolctl import threadpool_limits

from experiments import data, records, runs
from experiments.checkpoints import Checkpoints
from experiments.plasticity import figure, report, summary, sweep
from experiments.plasticity.arms import ARMS
from experiments.plasticity.config import Config
from experiments.plasticity.training import make_trainer, run_task, standardize


def run(config: Config, console: Console | None = None) -> Path:
    """Runs the experiment, or what is left of it, and writes its results.

    Args:
      config: What to run.
      console: Where progress and the summary go; standard output by default.

    Returns:
      The folder with `config.json`, `metrics.jsonl`, `summary.json`, `summary.md` and `figure.png`.

    Raises:
      UsageError: If something in the configuration cannot be run.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    console = console or runs.default_console()
    folder, config, jobs = _resume(config.resume, config) if config.resume else _plan(config)
    images = data.load(config.dataset, f"train[:{config.images}]", config.data_dir).images
    if not (folder / "config.json").exists():
        _write_config(folder, config, jobs)
    if config.learning_rate is None and not config.sweep:
        _tell_borrowed_rates(config, console)
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    # LAPACK's small singular value decompositions, once per task, take a hundred times longer when OpenBLAS threads
    # compete with XLA's for the cores.
    with threadpool_limits(limits=1, user_api="blas"):
        _train(config, jobs, standardize(images), folder, console)
    _conclude(config, folder, console)
    return folder


def _plan(config: Config) -> tuple[Path, Config, list[summary.Job]]:
    config = config.resolved()
    if config.sweep:
        config = dataclasses.replace(config, first_seed=config.first_seed + sweep.SEED_OFFSET)
    # Before the sweep is looked for: a dataset that does not exist is not to be swept.
    data.require_available(config.dataset, config.data_dir)
    jobs = _jobs(config)
    kind = "-sweep" if config.sweep else ""
    name = config.run or f"plasticity-{config.dataset.replace('/', '_')}{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config, jobs


def _write_config(folder: Path, config: Config, jobs: Sequence[summary.Job]) -> None:
    stored = {
        "experiment": "plasticity",
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "config": config,
        "jobs": [{"arm": arm, "learning_rate": rate} for arm, rate in jobs],
    }
    records.write_json(folder / "config.json", stored)


def _stored(folder: Path) -> dict[str, Any]:
    return runs.read_config(folder, "plasticity", ("config", "jobs", "environment", "command"))


def _resume(folder: Path, config: Config) -> tuple[Path, Config, list[summary.Job]]:
    stored = _stored(folder)
    restored = runs.from_json(Config, stored["config"])
    runs.check_resumable(config, restored)
    return folder, restored, [(job["arm"], job["learning_rate"]) for job in stored["jobs"]]


def _jobs(config: Config) -> list[summary.Job]:
    if config.sweep:
        return [(arm, rate) for arm in config.arms for rate in sorted(config.learning_rates)]
    if config.learning_rate is not None:
        return [(arm, config.learning_rate) for arm in config.arms]
    content = sweep.for_run(config.sweep_file, config.dataset)
    return list(sweep.best_rates(content, config.arms).items())


def _tell_borrowed_rates(config: Config, console: Console) -> None:
    swept = sweep.for_run(config.sweep_file, config.dataset)["dataset"]
    if swept != config.dataset:
        console.print(
            f"no learning-rate sweep of {config.dataset} is committed: every arm runs at its best rate on {swept}; "
            "--sweep finds its own, --learning-rate gives one for all",
            highlight=False,
        )


def _train(config: Config, jobs: Sequence[summary.Job], inputs: jax.Array, folder: Path, console: Console) -> None:
    path = folder / "metrics.jsonl"
    known = {(r["arm"], r["learning_rate"], r["task"]): r for r in records.read_lines(path)}
    seeds = jnp.arange(config.first_seed, config.first_seed + config.seeds, dtype=jnp.int32)
    columns = (
        TextColumn("{task.description:>32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks, {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(jobs) * config.tasks, accuracy="compiling")
        trainers = {arm: make_trainer(ARMS[arm], config, inputs) for arm, _ in jobs}
        for index, (arm, rate) in enumerate(jobs):
            label = f"{ARMS[arm].label}, lr {rate:g}"
            done = sum((arm, rate, task) in known for task in range(config.tasks))
            progress.update(bar, description=label, completed=index * config.tasks)
            if done == config.tasks:
                continue
            began, trainer, learning_rate = time.monotonic(), trainers[arm], jnp.float32(rate)
            state = trainer.init(seeds, learning_rate, jnp.int32(0))
            first, state = checkpoints.restore(index, state)
            online = 0.0
            for task in range(first, config.tasks):
                state, measured = run_task(ARMS[arm], trainer, config, state, seeds, learning_rate, jnp.int32(task))
                record = {"arm": arm, "learning_rate": rate, "task": task} | {
                    name: np.asarray(values) for name, values in measured.items()
                }
                runs.report_once(path, records.plain(record), known, ("arm", "learning_rate", "task"), console)
                online = float(record["online_accuracy"].mean())
                progress.update(bar, completed=index * config.tasks + task + 1, accuracy=f"online {online:.3f}")
                if (task + 1) % config.checkpoint_every == 0:
                    checkpoints.save(index, task + 1, state)
            seconds = time.monotonic() - began
            progress.print(f"{label:>40}: online accuracy {online:.3f} in the last task, {seconds:.0f} s")


def _conclude(config: Config, folder: Path, console: Console) -> None:
    stored = _stored(folder)
    series = summary.collect(records.read_lines(folder / "metrics.jsonl"))
    rows = summary.summarize(series)
    if config.sweep:
        path = config.sweep_file or sweep.default_file(config.dataset)
        recorded = {**stored["environment"], "command": stored["command"]}
        sweep.write(path, config.dataset, config.setting(), rows, recorded)
        console.print(f"sweep written to [bold]{path}[/bold]", highlight=False)
    grid = sweep.for_run(config.sweep_file, config.dataset) if config.learning_rate is None else None
    report.write(folder, config, rows, grid, console)
    figure.draw(folder / "figure.png", config, series, grid)
    console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
