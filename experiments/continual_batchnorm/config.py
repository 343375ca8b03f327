"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from experiments import UsageError
from experiments.continual_batchnorm.arms import ARMS
from experiments.runs import require

QUICK: dict[str, Any] = {"seeds": 2, "learning_rates": (0.3,), "auxiliary_weights": (0.01,), "train_per_class": 100}
COUNTS = ("seeds", "tasks", "train_per_class", "held_out_per_class", "batch_size", "replay", "buffer", "width")
COUNTS = (*COUNTS, "groups", "stride", "checkpoint_every", "devices")


@dataclasses.dataclass(frozen=True)
class Config:
    """Norms on class-incremental tasks, online, with replay.

    Attributes:
      dataset: Embedded `mnist` or `digits`, else any TFDS name such as `cifar10`.
      data_dir: Where prepared datasets lie; by default TFDS_DATA_DIR or a folder in the user's cache.
      arms: The norms to compare.
      tasks: Into how many tasks the classes are split.
      train_per_class: Images of a class in the stream, each seen once as new.
      held_out_per_class: Images of a class to choose hyperparameters on, and as many to test on.
      batch_size: New images per step.
      replay: Images of the buffer beside them.
      buffer: How many images the buffer holds, chosen by reservoir sampling.
      learning_rates: Of SGD; each arm takes its best on the validation images.
      auxiliary_weights: Of AdaB²N's auxiliary loss from the second task on; tried with every rate.
      kappa: AdaB²N's exponent of the momentum, in [0, 1].
      width: Channels of the first stage; the second has twice as many.
      groups: Of group and continual normalization.
      stride: Of the first convolution.
      seeds: Number of seeds: order of classes, images and replay, and the network.
      first_seed: The first of them.
      devices: Over how many devices the seeds are spread.
      quick: A taste: fewer images, seeds and rates.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default dataset and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
      checkpoint_every: Tasks between checkpoints.
    """

    dataset: str = "mnist"
    data_dir: Path | None = None
    arms: tuple[str, ...] = tuple(ARMS)
    tasks: int = 5
    train_per_class: int = 250
    held_out_per_class: int = 50
    batch_size: int = 10
    replay: int = 10
    buffer: int = 200
    learning_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    auxiliary_weights: tuple[float, ...] = (0.01, 0.1)
    kappa: float = 0.4
    width: int = 8
    groups: int = 4
    stride: int = 3
    seeds: int = 5
    first_seed: int = 0
    devices: int = 1
    quick: bool = False
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            got = " ".join(self.arms) or "none"
            raise UsageError(f"--arms takes different ones of {', '.join(ARMS)}; got {got}.")
        for name in COUNTS:
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("first_seed", self.first_seed, self.first_seed >= 0, "at least 0")
        require("tasks", self.tasks, self.tasks >= 2, "at least 2")
        require("kappa", self.kappa, 0 <= self.kappa <= 1, "between 0 and 1")
        require("groups", self.groups, self.width % self.groups == 0, f"a divisor of --width {self.width}")
        require("replay", self.replay, self.replay <= self.batch_size, f"at most --batch-size {self.batch_size}")
        require("buffer", self.buffer, self.buffer >= self.replay, f"at least --replay {self.replay}")
        require("seeds", self.seeds, self.seeds % self.devices == 0, f"a multiple of --devices {self.devices}")
        for name, least in (("learning_rates", "positive"), ("auxiliary_weights", "at least 0")):
            values = getattr(self, name)
            fits = all(math.isfinite(v) and (v > 0 if least == "positive" else v >= 0) for v in values)
            require(name, values, bool(values) and fits and len(set(values)) == len(values), f"different, {least}")
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")

    def resolved(self) -> "Config":
        """The configuration with `quick` spelt out."""
        return dataclasses.replace(self, **QUICK, quick=False) if self.quick else self

    def settings(self, arm: str) -> list[tuple[float, float]]:
        """Learning rates and auxiliary weights that an arm is run with."""
        weights = self.auxiliary_weights if ARMS[arm].auxiliary else (0.0,)
        return [(rate, weight) for rate in self.learning_rates for weight in weights]
