"""The committed learning-rate sweep: written by `--sweep`, read by every other run."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import UsageError, runs
from experiments.plasticity.summary import Row
from experiments.records import write_json

REFERENCE = "digits"
FOLDER = Path(__file__).resolve().parent.parent / "sweeps"
SELECTION = "highest mean online accuracy over all tasks and seeds"
# A sweep draws other seeds than the run that its best rates are used in, or the best would look better than it is.
SEED_OFFSET = 1000


def default_file(dataset: str) -> Path:
    """Where the sweep of a dataset is committed."""
    return FOLDER / f"plasticity_{dataset.replace('/', '_').replace(':', '_')}.json"


def write(path: Path, dataset: str, setting: dict[str, Any], rows: Sequence[Row], recorded: dict[str, Any]) -> None:
    """Writes every arm at every rate, with what it was run on."""
    results = [
        {
            "arm": row.arm,
            "learning_rate": row.learning_rate,
            "online_accuracy": row.online._asdict(),
            "change": row.change._asdict(),
            "final_accuracy_last_tasks": row.final_last._asdict(),
        }
        for row in rows
    ]
    content = {
        "experiment": "plasticity",
        "dataset": dataset,
        "selection": SELECTION,
        "setting": setting,
        "recorded": recorded,
        "results": results,
    }
    write_json(path, content)


def read(path: Path, dataset: str) -> dict[str, Any]:
    """Reads a sweep.

    Raises:
      UsageError: If it does not exist, is no sweep, or is one of another dataset.
    """
    if not path.is_file():
        others = sorted(p.stem.removeprefix("plasticity_") for p in FOLDER.glob("plasticity_*.json"))
        raise UsageError(
            f"No learning-rate sweep for dataset {dataset!r} ({path} does not exist; there are sweeps for "
            f"{', '.join(others) or 'no dataset'}). Run it once with --sweep, or give one rate for all arms with "
            "--learning-rate."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["dataset"]
        rates = {(r["arm"], float(r["learning_rate"])): float(r["online_accuracy"]["mean"]) for r in content["results"]}
        if not rates:
            raise ValueError("it holds no results")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a sweep file ({error!r}); write it anew with --sweep.") from error
    if found != dataset:
        raise UsageError(f"{path} is the sweep of dataset {found!r}, got --dataset {dataset!r}.")
    return content


def for_run(path: Path | None, dataset: str) -> dict[str, Any]:
    """The sweep that decides the rates of a run: the file given, the dataset's own, or that of `REFERENCE`.

    Borrowed rates are better than none, and are told apart by the `dataset` of the result, which is then another one.

    Raises:
      UsageError: As `read`.
    """
    if path is not None:
        return read(path, dataset)
    own = default_file(dataset)
    return read(own, dataset) if own.is_file() else read(default_file(REFERENCE), REFERENCE)


def best_rates(content: dict[str, Any], arms: Iterable[str]) -> dict[str, float]:
    """The rate of each arm with the highest mean online accuracy; the smaller one of equals.

    Raises:
      UsageError: If an arm was not swept.
    """
    return runs.best_rates(content["results"], arms, lambda r: r["online_accuracy"]["mean"])
