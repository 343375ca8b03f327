"""The learning-rate sweep: written by `--sweep`, read by every other run."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import UsageError, runs
from experiments.minatar.config import Settings
from experiments.minatar.summary import Row
from experiments.records import plain, write_json

FOLDER = Path(__file__).resolve().parent.parent / "sweeps"
SELECTION = "highest mean return over all phases and seeds"
# A sweep draws other seeds than the run that its best rates are used in, or the best would look better than it is.
SEED_OFFSET = 1000


def default_file(settings: Settings) -> Path:
    """Where the sweep of a stream and algorithm is committed."""
    return FOLDER / f"minatar_{settings.stream}_{settings.algorithm}.json"


def write(path: Path, settings: Settings, rows: Sequence[Row], recorded: dict[str, Any]) -> None:
    """Writes every arm at every rate, with what it was run on."""
    results = [
        {"arm": row.arm, "learning_rate": row.learning_rate, "mean_return": row.mean, "return": row.overall._asdict()}
        for row in rows
    ]
    content = {"experiment": "minatar", "selection": SELECTION, "setting": plain(settings._asdict())}
    write_json(path, content | {"recorded": recorded, "results": results})


def read(path: Path) -> dict[str, Any]:
    """Reads a sweep.

    Raises:
      UsageError: If it does not exist or is none.
    """
    if not path.is_file():
        raise UsageError(
            f"No learning-rate sweep: {path} does not exist. Run it once with --sweep, or give one rate for all arms "
            "with --learning-rate."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {(r["arm"], float(r["learning_rate"])): float(r["mean_return"]) for r in content["results"]}
        if content["experiment"] != "minatar" or not scores:
            raise ValueError("it holds no results of this experiment")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a sweep file ({error!r}); write it anew with --sweep.") from error
    return content


def best_rates(content: dict[str, Any], arms: Iterable[str]) -> dict[str, float]:
    """The rate of each arm with the highest mean return; the smaller one of equals.

    Raises:
      UsageError: If an arm was not swept.
    """
    return runs.best_rates(content["results"], arms, lambda r: r["mean_return"])
