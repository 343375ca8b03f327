"""From a configuration to a folder of results, resumable at any moment."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments import data, records, runs
from experiments.memorisation import figure, networks, report, summary
from experiments.memorisation.arms import ARMS
from experiments.memorisation.config import Config, Settings
from experiments.plasticity import jobs, sweep
from experiments.plasticity.summary import Job
from experiments.plasticity.training import Trainer, network_trainer

EXPERIMENT = "memorisation"
# As many images tell dead units and ranks; all of fifty thousand at once would not fit a GPU.
PROBE = 4_096


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
    settings = config.resolved()
    most = max(stream.images for stream in settings.streams.values())
    images = data.load(settings.dataset, f"train[:{most}]", config.data_dir).images
    if not (folder / "config.json").exists():
        _write_config(folder, config, planned)
    if config.learning_rate is None and not config.sweep:
        _tell_borrowed_rates(config, settings, console)
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    _train(config, settings, planned, images, folder, console)
    _conclude(config, settings, folder, console)
    return folder


def _plan(config: Config) -> tuple[Path, Config, list[Job]]:
    settings = config.resolved()
    if config.sweep:
        config = dataclasses.replace(config, first_seed=config.first_seed + sweep.SEED_OFFSET)
    # Before the sweep is looked for: a dataset that does not exist is not to be swept.
    data.require_available(settings.dataset, config.data_dir)
    planned = _jobs(config, settings)
    kind = "-sweep" if config.sweep else ""
    name = config.run or f"{EXPERIMENT}-{settings.dataset.replace('/', '_')}{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config, planned


def _write_config(folder: Path, config: Config, planned: Sequence[Job]) -> None:
    stored = {
        "experiment": EXPERIMENT,
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "config": config,
        "jobs": [{"arm": arm, "learning_rate": rate} for arm, rate in planned],
    }
    records.write_json(folder / "config.json", stored)


def _stored(folder: Path) -> dict[str, Any]:
    return runs.read_config(folder, EXPERIMENT, ("config", "jobs", "environment", "command"))


def _resume(folder: Path, config: Config) -> tuple[Path, Config, list[Job]]:
    stored = _stored(folder)
    restored = runs.from_json(Config, stored["config"])
    runs.check_resumable(config, restored)
    return folder, restored, [(job["arm"], job["learning_rate"]) for job in stored["jobs"]]


def _grid(config: Config, settings: Settings) -> dict[str, Any]:
    return sweep.for_run(config.sweep_file, settings.dataset, EXPERIMENT)


def _jobs(config: Config, settings: Settings) -> list[Job]:
    arms = [summary.key(network, arm) for network in config.networks for arm in config.arms]
    if config.sweep:
        return [(arm, rate) for arm in arms for rate in sorted(config.learning_rates)]
    if config.learning_rate is not None:
        return [(arm, config.learning_rate) for arm in arms]
    return list(sweep.best_rates(_grid(config, settings), arms).items())


def _tell_borrowed_rates(config: Config, settings: Settings, console: Console) -> None:
    swept = _grid(config, settings)["dataset"]
    if swept != settings.dataset:
        console.print(
            f"no learning-rate sweep of {settings.dataset} is committed: every arm runs at its best rate on {swept}; "
            "--sweep finds its own, --learning-rate gives one for all",
            highlight=False,
        )


def _train(
    config: Config, settings: Settings, planned: Sequence[Job], images: np.ndarray, folder: Path, console: Console
) -> None:
    # One array by network, however many arms: compiled functions close over it.
    inputs = functools.cache(
        lambda network: networks.inputs(settings.streams[network].shape, images[: settings.streams[network].images])
    )

    def make(name: str) -> Trainer:
        network, _, arm = name.partition("/")
        built = networks.build(settings.streams[network].shape, images.shape[1:], ARMS[arm])
        return network_trainer(built, ARMS[arm].method, settings.strengths, inputs(network), PROBE)

    def job(name: str, rate: float) -> jobs.Job:
        network, _, arm = name.partition("/")
        stream, method = settings.streams[network], ARMS[arm].method
        return jobs.Job(name, f"{network.upper()} {method.label}", rate, method, stream, stream.tasks)

    seeds = range(config.first_seed, config.first_seed + settings.seeds)
    jobs.train([job(*item) for item in planned], make, seeds, folder, config.checkpoint_every, console)


def _conclude(config: Config, settings: Settings, folder: Path, console: Console) -> None:
    stored = _stored(folder)
    series = summary.collect(records.read_lines(folder / "metrics.jsonl"))
    if config.sweep:
        path = config.sweep_file or sweep.default_file(settings.dataset, EXPERIMENT)
        recorded = {**stored["environment"], "command": stored["command"]}
        sweep.write(path, settings.dataset, config.setting(), summary.summarize(series), recorded, EXPERIMENT)
        console.print(f"sweep written to [bold]{path}[/bold]", highlight=False)
    grid = _grid(config, settings) if config.learning_rate is None else None
    report.write(folder, config, settings, series, grid, console)
    figure.draw(folder / "figure.png", settings, series)
    console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
