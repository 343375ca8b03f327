"""From a configuration to a folder of results, resumable at any moment."""

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import UsageError, data, records, runs
from experiments.checkpoints import Checkpoints
from experiments.language_model import ahead_of_time, arms, figure, report, summary
from experiments.language_model.config import Config
from experiments.language_model.training import Feed, Trainer, all_runs, make_mesh, make_trainer


def run(config: Config, console: Console | None = None) -> Path | None:
    """Runs the experiment, or what is left of it, and writes its results.

    Args:
      config: What to run.
      console: Where progress and the summary go; standard output by default.

    Returns:
      The folder with `config.json`, `metrics.jsonl`, `summary.json`, `summary.md` and `figure.png`, or `None` where it
      only compiled.

    Raises:
      UsageError: If something in the configuration cannot be run.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    console = console or runs.default_console()
    if config.compile_for is not None:
        ahead_of_time.show(config.resolved(), console)
        return None
    folder, config = _resumed(config.resume, config) if config.resume else _planned(config)
    text = data.load_text(config.dataset, config.data_dir, most_bytes=config.most_bytes)
    about = {"splits": text.splits, "sha256": text.sha256, "bytes": [len(text.train), len(text.validation)]}
    if (folder / "config.json").exists():
        _check_text(folder, about)
    else:
        _write_config(folder, config, about)
    console.print(
        f"{config.dataset}: {len(text.train):,} bytes to learn, {len(text.validation):,} held out, sha256 "
        f"{text.sha256[:12]}\nresults go to [bold]{folder}[/bold] (if interrupted: --resume {folder})",
        highlight=False,
    )
    _train(config, text, folder, console)
    series = summary.collect(records.read_lines(folder / "metrics.jsonl"), config)
    report.write(folder, config, about, summary.summarize(series, config), console)
    figure.draw(folder / "figure.png", config, series)
    console.print(f"figure in [bold]{folder / 'figure.png'}[/bold]", highlight=False)
    return folder


def _planned(config: Config) -> tuple[Path, Config]:
    config = config.resolved()
    name = config.run or f"language_model-{config.dataset.replace('/', '_')}-{datetime.now():%Y%m%d-%H%M%S}"
    return runs.require_new(config.out / name), config


def _write_config(folder: Path, config: Config, about: dict[str, Any]) -> None:
    stored = {
        "experiment": "language_model",
        "command": runs.command(sys.argv[1:]),
        "environment": records.environment(),
        "text": about,
        "config": config,
    }
    records.write_json(folder / "config.json", stored)


def _stored(folder: Path) -> dict[str, Any]:
    return runs.read_config(folder, "language_model", ("config", "text"))


def _resumed(folder: Path, config: Config) -> tuple[Path, Config]:
    restored = runs.from_json(Config, _stored(folder)["config"])
    runs.check_resumable(config, restored)
    return folder, restored


def _check_text(folder: Path, about: dict[str, Any]) -> None:
    before = _stored(folder)["text"]
    if before["sha256"] != about["sha256"]:
        raise UsageError(
            f"{folder} was run on a text with sha256 {before['sha256'][:12]}, the dataset now has "
            f"{about['sha256'][:12]}: resume with the Python or the data directory that it began with."
        )


def _train(config: Config, text: data.Text, folder: Path, console: Console) -> None:
    path = folder / "metrics.jsonl"
    known = {(r["arm"], r["chunk"]): r for r in records.read_lines(path)}
    mesh = make_mesh(config)
    chunks = config.steps // config.chunk
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks, {task.fields[bits]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(config.arms) * chunks, bits="compiling")
        for index, name in enumerate(config.arms):
            progress.update(bar, description=name, completed=index * chunks)
            if all((name, chunk) in known for chunk in range(chunks)):
                continue
            began = time.monotonic()
            trainer, layout = make_trainer(arms.parse(name), config, mesh)
            feed = Feed(config, text, layout)
            for chunk, measured in _arm(trainer, config, feed, checkpoints, index):
                record = {"arm": name, "chunk": chunk} | measured
                runs.report_once(path, records.plain(record), known, ("arm", "chunk"), console)
                bits = f"{np.mean(measured['validation'][: config.seeds]):.3f} bits per byte"
                progress.update(bar, completed=index * chunks + chunk + 1, bits=bits)
                if chunk + 1 == chunks:
                    seconds = time.monotonic() - began
                    progress.print(f"{name:>24}: {bits} at the low rate, {seconds:.0f} s", highlight=False)


def _arm(
    trainer: Trainer, config: Config, feed: Feed, checkpoints: Checkpoints, index: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    grid = all_runs(config)
    state = trainer.init(grid)
    # Leaves alone: boxes and their metadata are made again by `init`.
    leaves, structure = jax.tree.flatten(state)
    first, leaves = checkpoints.restore(index, leaves)
    state = structure.unflatten(leaves)
    for chunk in range(first, config.steps // config.chunk):
        state, measured = trainer.chunk(state, grid, feed.chunk(chunk), feed.validation)
        yield chunk, {name: np.asarray(values) for name, values in measured.items()}
        if (chunk + 1) % config.checkpoint_every == 0:
            checkpoints.save(index, chunk + 1, jax.tree.leaves(state))
