"""From a configuration to a folder of results, resumable at any moment."""

import sys
import time
from datetime import datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import UsageError, data, records, runs
from experiments.checkpoints import Checkpoints
from experiments.continual_batchnorm import figure, report, summary
from experiments.continual_batchnorm.arms import ARMS
from experiments.continual_batchnorm.config import Config
from experiments.continual_batchnorm.stream import Split, split
from experiments.continual_batchnorm.training import all_runs, make_trainer

NAME = "continual_batchnorm"


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
    folder, config = _resumed(config.resume, config) if config.resume else _planned(config)
    if config.devices > jax.device_count():
        raise UsageError(f"--devices {config.devices}, but there are {jax.device_count()}.")
    parts = split(data.load(config.dataset, "train", config.data_dir), config)
    if not (folder / "config.json").exists():
        _write_config(folder, config)
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    _train(config, parts, folder, console)
    found = summary.collect(records.read_lines(folder / "metrics.jsonl"), config)
    report.write(folder, config, summary.summarize(found, config), console)
    figure.draw(folder / "figure.png", config, found)
    console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
    return folder


def _planned(config: Config) -> tuple[Path, Config]:
    config = config.resolved()
    name = config.run or f"{NAME}-{config.dataset.replace('/', '_')}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config


def _write_config(folder: Path, config: Config) -> None:
    stored = {
        "experiment": NAME,
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "config": config,
    }
    records.write_json(folder / "config.json", stored)


def _resumed(folder: Path, config: Config) -> tuple[Path, Config]:
    restored = runs.from_json(Config, runs.read_config(folder, NAME)["config"])
    runs.check_resumable(config, restored)
    return folder, restored


def _train(config: Config, parts: Split, folder: Path, console: Console) -> None:
    path = folder / "metrics.jsonl"
    known = {(r["arm"], r["task"]): r for r in records.read_lines(path)}
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(config.arms) * config.tasks)
        for index, name in enumerate(config.arms):
            progress.update(bar, description=ARMS[name].label, completed=index * config.tasks)
            if all((name, task) in known for task in range(config.tasks)):
                continue
            began, trainer = time.monotonic(), make_trainer(ARMS[name], config, parts)
            grid = all_runs(name, config, parts.train.labels)
            state = trainer.init(grid)
            # Leaves alone: names and types of the state are made again by `init`.
            leaves, structure = jax.tree.flatten(state)
            first, leaves = checkpoints.restore(index, leaves)
            state = structure.unflatten(leaves)
            for task in range(first, config.tasks):
                state, measured = trainer.learn(state, grid, jnp.int32(task))
                record = {"arm": name, "task": task} | {key: np.asarray(values) for key, values in measured.items()}
                runs.report_once(path, records.plain(record), known, ("arm", "task"), console)
                if (task + 1) % config.checkpoint_every == 0:
                    checkpoints.save(index, task + 1, jax.tree.leaves(state))
                progress.update(bar, completed=index * config.tasks + task + 1)
            progress.print(f"{ARMS[name].label:>24}: {time.monotonic() - began:.0f} s", highlight=False)
