"""From a configuration to a folder of results, resumable at any moment."""

import dataclasses
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments import data, records, runs
from experiments.plasticity import figure, jobs, report, summary, sweep
from experiments.plasticity.arms import ARMS
from experiments.plasticity.config import Config
from experiments.plasticity.training import make_trainer, standardize


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
    folder, config, planned = _resume(config.resume, config) if config.resume else _plan(config)
    images = data.load(config.dataset, f"train[:{config.images}]", config.data_dir).images
    if not (folder / "config.json").exists():
        _write_config(folder, config, planned)
    if config.learning_rate is None and not config.sweep:
        _tell_borrowed_rates(config, console)
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    _train(config, planned, standardize(images), folder, console)
    _conclude(config, folder, console)
    return folder


def _plan(config: Config) -> tuple[Path, Config, list[summary.Job]]:
    config = config.resolved()
    if config.sweep:
        config = dataclasses.replace(config, first_seed=config.first_seed + sweep.SEED_OFFSET)
    # Before the sweep is looked for: a dataset that does not exist is not to be swept.
    data.require_available(config.dataset, config.data_dir)
    planned = _jobs(config)
    kind = "-sweep" if config.sweep else ""
    name = config.run or f"plasticity-{config.dataset.replace('/', '_')}{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config, planned


def _write_config(folder: Path, config: Config, planned: Sequence[summary.Job]) -> None:
    stored = {
        "experiment": "plasticity",
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "config": config,
        "jobs": [{"arm": arm, "learning_rate": rate} for arm, rate in planned],
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


def _train(config: Config, planned: Sequence[summary.Job], inputs: jax.Array, folder: Path, console: Console) -> None:
    work = [jobs.Job(arm, ARMS[arm].label, rate, ARMS[arm], config, config.tasks) for arm, rate in planned]
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    jobs.train(
        work, lambda arm: make_trainer(ARMS[arm], config, inputs), seeds, folder, config.checkpoint_every, console
    )


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
