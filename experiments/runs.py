"""What every resumable experiment shares: its folder, the settings that it wrote down, and what was reported."""

import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from experiments import UsageError, records

FILE_WIDTH = 200
PLACES = ("--out", "--run", "--data-dir")

_Config = TypeVar("_Config")


def default_console() -> Console:
    """Standard output; wide enough for the table where it is a file and not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def command(arguments: Sequence[str]) -> str:
    """The command line for the record, without where things lie on this machine, which decides nothing."""
    kept: list[str] = []
    place = False
    for argument in arguments:
        is_flag = argument.startswith("--")
        place = argument.split("=")[0].replace("_", "-") in PLACES if is_flag else place
        kept += [] if place else [argument]
    return shlex.join(["python", "-m", "experiments", *kept])


def require(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raises `UsageError` unless the setting `name` holds what was expected of it."""
    if not holds:
        raise UsageError(f"--{name.replace('_', '-')} must be {expected}, got {value}.")


def from_json(kind: type[_Config], stored: Mapping[str, Any]) -> _Config:
    """The configuration that a run wrote down.

    Args:
      kind: The dataclass of the experiment's settings.
      stored: What JSON made of them: paths are text, tuples are lists.

    Returns:
      An instance of `kind`.

    Raises:
      UsageError: If it has fields that `kind` does not have.
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(stored) - set(hints)):
        raise UsageError(f"The stored configuration has the unknown fields {', '.join(unknown)}.")
    values: dict[str, Any] = {}
    for name, value in stored.items():
        value = Path(value) if _is_path(hints[name]) and value is not None else value
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _is_path(hint: Any) -> bool:
    return hint is Path or (isinstance(hint, types.UnionType) and Path in typing.get_args(hint))


def check_resumable(given: Any, stored: Any) -> None:
    """Refuses flags beside `--resume` that contradict the run that is resumed.

    Args:
      given: The settings of the command line.
      stored: Those of the run, of the same dataclass, all of whose fields have defaults.

    Raises:
      UsageError: Naming the flags.
    """
    default = type(given)()
    wrong = [
        f"--{field.name.replace('_', '-')} {getattr(given, field.name)}"
        for field in dataclasses.fields(given)
        if field.name not in ("resume", "out", "run")
        and getattr(given, field.name) not in (getattr(default, field.name), getattr(stored, field.name))
    ]
    if wrong:
        raise UsageError(f"--resume {given.resume} brings its own settings, which differ from {', '.join(wrong)}.")


def require_new(folder: Path) -> Path:
    """The folder, unless it holds a run already."""
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a run already; continue it with --resume {folder}, or take another --run.")
    return folder


def read_config(folder: Path, experiment: str, entries: Iterable[str] = ("config",)) -> dict[str, Any]:
    """What a run wrote down when it started.

    Args:
      folder: Of the run.
      experiment: Name of the experiment that it has to be of.
      entries: What has to be there.

    Returns:
      The content of its `config.json`.

    Raises:
      UsageError: If the folder holds no run of this experiment.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run to resume: {path} does not exist.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if missing := {*entries, "experiment"} - set(stored):
            raise ValueError(f"it lacks {sorted(missing)}")
        if stored["experiment"] != experiment:
            raise ValueError(f"it is one of {stored['experiment']!r}")
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} was not written by this experiment ({error!r}).") from error
    return stored


def report_once(
    path: Path, record: dict[str, Any], known: Mapping[Any, Mapping[str, Any]], keys: Sequence[str], console: Console
) -> None:
    """Appends a record; what lies between the last checkpoint and a kill is computed twice and recorded once.

    Args:
      path: The JSON lines of the run.
      record: As JSON has it.
      known: Records that are there already, by the values of `keys`.
      keys: What tells records apart; the last is the unit of the run (task, chunk, phase).
      console: Where it is said if a record came out differently the second time.
    """
    before = known.get(tuple(record[key] for key in keys))
    if before is None:
        records.append_line(path, record)
    elif before != record:
        unit = keys[-1]
        console.print(
            f"[yellow]{unit} {record[unit]} of {record['arm']} came out differently than before the interruption; "
            "was it on another machine or other versions? The first report is kept."
        )


def best_rates(
    results: Sequence[Mapping[str, Any]], arms: Iterable[str], score: Callable[[Mapping[str, Any]], float]
) -> dict[str, float]:
    """The learning rate of each arm with the highest score in a sweep; the smaller one of equals.

    Args:
      results: One for each arm and rate, with the entries `arm` and `learning_rate`.
      arms: The arms that are asked for.
      score: What is to be high of a result.

    Returns:
      A rate by arm.

    Raises:
      UsageError: If an arm was not swept.
    """
    swept = sorted({result["arm"] for result in results})
    best: dict[str, float] = {}
    for arm in arms:
        candidates = [result for result in results if result["arm"] == arm]
        if not candidates:
            raise UsageError(
                f"The sweep has no arm {arm!r}; it has {', '.join(swept)}. Sweep again, or give one rate for all arms "
                "with --learning-rate."
            )
        best[arm] = float(max(candidates, key=lambda r: (score(r), -r["learning_rate"]))["learning_rate"])
    return best


def series_by_job(
    lines: Sequence[Mapping[str, Any]], unit: str, metrics: Iterable[str]
) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Sorts records into arrays of every metric, in the order of their units; null becomes NaN.

    Args:
      lines: Records with the entries `arm`, `learning_rate`, `unit` and the metrics.
      unit: What numbers the records of a job: `"task"` or `"phase"`.
      metrics: Their names.

    Returns:
      `{(arm, learning rate): {metric: (units, ...)}}`, float64.
    """
    by_job: dict[tuple[str, float], dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        by_job.setdefault((line["arm"], line["learning_rate"]), {})[line[unit]] = line
    names = tuple(metrics)
    return {
        job: {name: np.array([units[i][name] for i in sorted(units)], np.float64) for name in names}
        for job, units in by_job.items()
    }
