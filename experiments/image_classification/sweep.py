"""The learning-rate sweep at the reference batch: written by `--sweep`, read by every other run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import UsageError, runs
from experiments.image_classification.arms import ARMS
from experiments.image_classification.config import Config
from experiments.image_classification.summary import Row
from experiments.records import plain, write_json

NAME = "image_classification"
REFERENCE = "photos"
FOLDER = Path(__file__).resolve().parent.parent / "sweeps"
SELECTION = "highest mean accuracy over seeds on the validation images at the end"
# A sweep draws other seeds than the run that its best rates are used in, or the best would look better than it is.
SEED_OFFSET = 1000


def default_file(dataset: str) -> Path:
    """Where the sweep of a dataset is committed."""
    return FOLDER / f"{NAME}_{dataset.replace('/', '_').replace(':', '_')}.json"


def write(path: Path, config: Config, rows: Sequence[Row], recorded: dict[str, Any]) -> None:
    """Writes every arm at every rate, with what it was run on."""
    results = [
        {
            "arm": row.job.arm,
            "learning_rate": row.job.learning_rate,
            "validation": row.validation._asdict(),
            "diverged": row.diverged,
        }
        for row in rows
    ]
    content = {"experiment": NAME, "dataset": config.dataset, "selection": SELECTION, "setting": config.setting()}
    write_json(path, plain(content) | {"recorded": recorded, "results": results})


def read(path: Path) -> dict[str, Any]:
    """Reads a sweep.

    Raises:
      UsageError: If it does not exist or is none.
    """
    if not path.is_file():
        raise UsageError(
            f"No learning-rate sweep: {path} does not exist. Run it once with --sweep, or give one rate with "
            "--sgd-rate and one with --adam-rate."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {(r["arm"], float(r["learning_rate"])): r["validation"]["mean"] for r in content["results"]}
        if content["experiment"] != NAME or not scores:
            raise ValueError("it holds no results of this experiment")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a sweep file ({error!r}); write it anew with --sweep.") from error
    return content


def for_run(config: Config) -> dict[str, Any]:
    """The sweep that decides the rates of a run: the file given, the dataset's own, or that of `REFERENCE`.

    Raises:
      UsageError: As `read`.
    """
    own = config.sweep_file or default_file(config.dataset)
    return read(own if config.sweep_file or own.is_file() else default_file(REFERENCE))


def rates(config: Config) -> dict[str, float]:
    """The learning rate of each arm at the reference batch: the one given, or its best of the sweep.

    Raises:
      UsageError: If a sweep is needed and there is none, or it lacks an arm.
    """
    given = {arm: config.adam_rate if ARMS[arm].adam else config.sgd_rate for arm in config.arms}
    swept = [arm for arm, rate in given.items() if rate is None]
    found = runs.best_rates(for_run(config)["results"], swept, lambda r: r["validation"]["mean"]) if swept else {}
    return {arm: found[arm] if rate is None else rate for arm, rate in given.items()}
