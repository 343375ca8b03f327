"""The committed learning-rate sweep: written by `--sweep`, read by every other run."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments import UsageError, runs
from experiments.records import write_json
from experiments.statistics import Interval

# Another experiment that reads and writes its sweeps here says so.
EXPERIMENT = "plasticity"
REFERENCE = "digits"
FOLDER = Path(__file__).resolve().parent.parent / "sweeps"
SELECTION = "highest mean online accuracy over all tasks and seeds"
# A sweep draws other seeds than the run that its best rates are used in, or the best would look better than it is.
SEED_OFFSET = 1000


class Row(Protocol):
    """What a sweep records of one arm at one rate."""

    @property
    def arm(self) -> str:
        """Name of the arm."""
        ...

    @property
    def learning_rate(self) -> float:
        """Its rate."""
        ...

    @property
    def online(self) -> Interval:
        """Online accuracy over all tasks."""
        ...

    @property
    def change(self) -> Interval:
        """From the first to the last tasks."""
        ...

    @property
    def final_last(self) -> Interval:
        """Accuracy at the end of the last tasks."""
        ...


def default_file(dataset: str, experiment: str = EXPERIMENT) -> Path:
    """Where the sweep of a dataset is committed."""
    return FOLDER / f"{experiment}_{dataset.replace('/', '_').replace(':', '_')}.json"


def write(
    path: Path,
    dataset: str,
    setting: dict[str, Any],
    rows: Sequence[Row],
    recorded: dict[str, Any],
    experiment: str = EXPERIMENT,
) -> None:
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
        "experiment": experiment,
        "dataset": dataset,
        "selection": SELECTION,
        "setting": setting,
        "recorded": recorded,
        "results": results,
    }
    write_json(path, content)


def read(path: Path, dataset: str, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """Reads a sweep.

    Raises:
      UsageError: If it does not exist, is no sweep, or is one of another dataset.
    """
    if not path.is_file():
        others = sorted(p.stem.removeprefix(f"{experiment}_") for p in FOLDER.glob(f"{experiment}_*.json"))
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


def for_run(path: Path | None, dataset: str, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """The sweep that decides the rates of a run: the file given, the dataset's own, or that of `REFERENCE`.

    Borrowed rates are better than none, and are told apart by the `dataset` of the result, which is then another one.

    Raises:
      UsageError: As `read`.
    """
    if path is not None:
        return read(path, dataset, experiment)
    own = default_file(dataset, experiment)
    if own.is_file():
        return read(own, dataset, experiment)
    return read(default_file(REFERENCE, experiment), REFERENCE, experiment)


def best_rates(content: dict[str, Any], arms: Iterable[str]) -> dict[str, float]:
    """The rate of each arm with the highest mean online accuracy; the smaller one of equals.

    Raises:
      UsageError: If an arm was not swept.
    """
    return runs.best_rates(content["results"], arms, lambda r: r["online_accuracy"]["mean"])
