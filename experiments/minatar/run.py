"""From a configuration to a folder of results, resumable after every phase."""

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

from experiments import records, runs
from experiments.checkpoints import Checkpoints
from experiments.minatar import figure, games, report, summary, sweep
from experiments.minatar.algorithms import ALGORITHMS
from experiments.minatar.arms import ARMS
from experiments.minatar.config import Config, Settings
from experiments.minatar.training import Trainer, draw_task, make_trainer


def run(config: Config, console: Console | None = None) -> Path:
    """Runs the experiment, or what is left of it, and writes its results.

    Args:
      config: What to run.
      console: Where progress and the summary go; standard output by default.

    Returns:
      The folder with `config.json`, `metrics.jsonl`, `summary.json`, `summary.md` and `figure.png`.

    Raises:
      UsageError: If something in the configuration cannot be run, or gymnax is not installed.
    """
    console = console or runs.default_console()
    folder, config, jobs = _resume(config.resume, config) if config.resume else _plan(config)
    settings = config.resolved()
    stream = games.load(settings.games)
    if not (folder / "config.json").exists():
        _write_config(folder, config, jobs)
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    _train(config, settings, jobs, stream, folder, console)
    _conclude(config, settings, folder, console)
    return folder


def _plan(config: Config) -> tuple[Path, Config, list[summary.Job]]:
    settings = config.resolved()
    if config.sweep:
        config = dataclasses.replace(config, first_seed=config.first_seed + sweep.SEED_OFFSET)
    jobs = _jobs(config, settings)
    kind = "-sweep" if config.sweep else ""
    name = config.run or f"minatar-{settings.stream}-{settings.algorithm}{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config, jobs


def _write_config(folder: Path, config: Config, jobs: Sequence[summary.Job]) -> None:
    stored = {
        "experiment": "minatar",
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(("jax", "jaxlib", "optax", "flax", "numpy", "gymnax")),
        "config": config,
        "jobs": [{"arm": arm, "learning_rate": rate} for arm, rate in jobs],
    }
    records.write_json(folder / "config.json", stored)


def _stored(folder: Path) -> dict[str, Any]:
    return runs.read_config(folder, "minatar", ("config", "jobs", "environment", "command"))


def _resume(folder: Path, config: Config) -> tuple[Path, Config, list[summary.Job]]:
    stored = _stored(folder)
    restored = runs.from_json(Config, stored["config"])
    runs.check_resumable(config, restored)
    return folder, restored, [(job["arm"], job["learning_rate"]) for job in stored["jobs"]]


def _jobs(config: Config, settings: Settings) -> list[summary.Job]:
    if config.sweep:
        return [(arm, rate) for arm in config.arms for rate in sorted(config.learning_rates)]
    if config.learning_rate is not None:
        return [(arm, config.learning_rate) for arm in config.arms]
    return list(sweep.best_rates(sweep.read(_sweep_file(config, settings)), config.arms).items())


def _sweep_file(config: Config, settings: Settings) -> Path:
    return config.sweep_file or sweep.default_file(settings)


def _train(
    config: Config,
    settings: Settings,
    jobs: Sequence[summary.Job],
    stream: Sequence[games.Game],
    folder: Path,
    console: Console,
) -> None:
    path = folder / "metrics.jsonl"
    known = {(r["arm"], r["learning_rate"], r["phase"]): r for r in records.read_lines(path)}
    columns = (
        TextColumn("{task.description:>40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("phases, {task.fields[score]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(jobs) * settings.phases, score="compiling")
        trainers: dict[str, list[Trainer]] = {}
        for index, (arm, rate) in enumerate(jobs):
            done = index * settings.phases
            progress.update(bar, description=f"{ARMS[arm].label}, lr {rate:g}", completed=done)
            if all((arm, rate, phase) in known for phase in range(settings.phases)):
                continue
            if arm not in trainers:
                # One arm after the other: the compiled functions of the last one are not needed again.
                algorithm = ALGORITHMS[settings.algorithm]
                trainers = {arm: [make_trainer(ARMS[arm], algorithm, game, settings) for game in stream]}
            began = time.monotonic()
            score = 0.0
            for phase, record in _phases(config, settings, index, (arm, rate), stream, trainers[arm], checkpoints):
                runs.report_once(path, record, known, ("arm", "learning_rate", "phase"), console)
                score = float(np.nanmean(np.array(record["episode_return"], np.float64)))
                progress.update(bar, completed=done + phase + 1, score=f"return {score:.2f}")
            seconds = time.monotonic() - began
            progress.print(f"{ARMS[arm].label:>40}, lr {rate:g}: return {score:.2f} in the last phase, {seconds:.0f} s")


def _phases(
    config: Config,
    settings: Settings,
    index: int,
    job: summary.Job,
    stream: Sequence[games.Game],
    trainers: Sequence[Trainer],
    checkpoints: Checkpoints,
) -> Any:
    """Trains one job, phase by phase; yields the phase and its record once it is finished."""
    arm, rate = job
    seeds = jnp.arange(config.first_seed, config.first_seed + settings.seeds, dtype=jnp.int32)
    first, agent = checkpoints.restore(index, trainers[0].init(seeds, jnp.int32(0)))
    for phase in range(first, settings.phases):
        number, game, trainer = jnp.int32(phase), stream[phase % len(stream)], trainers[phase % len(stream)]
        if ARMS[arm].fresh:
            agent = trainer.init(seeds, number)
        task = draw_task(seeds, number, game.channels, game.actions, settings.stream == "permuted")
        agent, measured = trainer.train(agent, seeds, number, jnp.float32(rate), task)
        values = {name: np.asarray(value) for name, value in jax.device_get(measured).items()}
        yield phase, records.plain({"arm": arm, "learning_rate": rate, "phase": phase, "game": game.name} | values)
        checkpoints.save(index, phase + 1, agent)


def _conclude(config: Config, settings: Settings, folder: Path, console: Console) -> None:
    stored = _stored(folder)
    series = summary.collect(records.read_lines(folder / "metrics.jsonl"))
    rows = summary.summarize(series, settings)
    path = _sweep_file(config, settings)
    if config.sweep:
        sweep.write(path, settings, rows, {**stored["environment"], "command": stored["command"]})
        console.print(f"sweep written to [bold]{path}[/bold]", highlight=False)
    grid = sweep.read(path) if config.learning_rate is None else None
    report.write(folder, settings, rows, grid, console)
    figure.draw(folder / "figure.png", settings, series, rows)
    console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
