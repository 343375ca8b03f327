"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import UsageError
from experiments.plasticity.arms import ARMS
from experiments.runs import require

QUICK_TASKS, QUICK_SEEDS = 20, 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Loss of plasticity on sequential random labels.

    Attributes:
      dataset: Embedded `digits` or `mnist`, else any TFDS name such as `cifar10`.
      data_dir: Where prepared datasets lie; by default TFDS_DATA_DIR or a folder in the user's cache.
      images: How many images are memorised.
      arms: The methods to compare.
      tasks: How often the labels are drawn anew.
      steps: Optimizer steps per task.
      batch_size: Images per step.
      seeds: Number of seeds, trained together.
      first_seed: The first of them; a sweep uses others.
      width: Units per hidden layer.
      depth: Hidden layers.
      learning_rate: One rate for every arm, instead of each arm's best of the sweep.
      learning_rates: The grid of --sweep.
      weight_decay: AdamW's coefficient in the `ln_wd` arms.
      l2_init: Fraction of the distance to initialisation removed per step in `ln_l2init`.
      affine_decay: The same for scale and offset in the `_decay` arms.
      readout_decay: The same for the readout in the `_decay_readout` arms.
      sweep: Run every arm at every rate of the grid and write the sweep file.
      sweep_file: The sweep to read or write; by default the one of the dataset in experiments/sweeps, or where there is
        none the one of digits to read.
      quick: A taste: fewer tasks and seeds.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default dataset and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
      checkpoint_every: Tasks between checkpoints.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    images: int = 512
    arms: tuple[str, ...] = tuple(ARMS)
    tasks: int = 120
    steps: int = 150
    batch_size: int = 64
    seeds: int = 5
    first_seed: int = 0
    width: int = 64
    depth: int = 3
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 0.1
    l2_init: float = 1e-3
    affine_decay: float = 1e-3
    readout_decay: float = 1e-3
    sweep: bool = False
    sweep_file: Path | None = None
    quick: bool = False
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            got = " ".join(self.arms) or "none"
            raise UsageError(f"--arms takes different ones of {', '.join(ARMS)}; got {got}.")
        for name in ("images", "tasks", "steps", "batch_size", "seeds", "width", "depth", "checkpoint_every"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("first_seed", self.first_seed, self.first_seed >= 0, "at least 0")
        rates = self.learning_rates if self.learning_rate is None else (self.learning_rate, *self.learning_rates)
        for rate in rates:
            require("learning_rate", rate, math.isfinite(rate) and rate > 0, "positive and finite")
        if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
            raise UsageError(f"--learning-rates takes one or more different rates; got {self.learning_rates}.")
        require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "finite and at least 0")
        for name in ("l2_init", "affine_decay", "readout_decay"):
            require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        if self.batch_size > self.images:
            raise UsageError(f"--batch-size {self.batch_size} is larger than --images {self.images}.")
        if self.sweep and self.learning_rate is not None:
            raise UsageError(f"--sweep runs all --learning-rates; drop --learning-rate {self.learning_rate:g}.")
        changed = self._changed(("arms", "learning_rates", "quick", *self.setting()))
        if self.sweep and self.sweep_file is None and changed:
            raise UsageError(
                f"--sweep with other {', '.join(changed)} than the default would replace the sweep that all other runs "
                "read; name a file of its own with --sweep-file."
            )
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")

    def resolved(self) -> "Config":
        """The configuration with `quick` spelt out."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self, tasks=min(self.tasks, QUICK_TASKS), seeds=min(self.seeds, QUICK_SEEDS), quick=False
        )

    def _changed(self, names: Iterable[str]) -> list[str]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        apart = ("dataset", "first_seed")
        return [name for name in names if name not in apart and getattr(self, name) != defaults[name]]

    def setting(self) -> dict[str, Any]:
        """The fields that decide what is learned, and from which seeds."""
        apart = ("data_dir", "arms", "learning_rate", "learning_rates", "sweep", "sweep_file", "quick")
        apart = (*apart, "out", "run", "resume", "checkpoint_every")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in apart}
