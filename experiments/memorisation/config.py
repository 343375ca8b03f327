"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import UsageError
from experiments.memorisation.arms import ARMS, Strengths
from experiments.memorisation.networks import Shape
from experiments.runs import require

NETWORKS = ("mlp", "cnn")
QUICK_TASKS, QUICK_SEEDS = 8, 2
_FRACTIONS = ("l2_init", "shrink", "readout_decay", "affine_decay")


class Stream(NamedTuple):
    """What one network lives through.

    Attributes:
      shape: Of the network.
      tasks: How often the labels are drawn anew.
      steps: Optimizer steps per task.
      images: How many are memorised.
      batch_size: Images per step.
    """

    shape: Shape
    tasks: int
    steps: int
    images: int
    batch_size: int


class Preset(NamedTuple):
    """Sizes of a run: the data, the number of seeds and a stream of tasks by network."""

    dataset: str
    seeds: int
    streams: Mapping[str, Stream]


PRESETS: Mapping[str, Preset] = {
    "cpu": Preset(
        "digits",
        5,
        {
            "mlp": Stream(Shape((), (64, 64, 64)), 48, 150, 512, 64),
            "cnn": Stream(Shape((8, 16), (64,)), 36, 150, 256, 32),
        },
    ),
    "gpu": Preset(
        "mnist",
        10,
        {
            "mlp": Stream(Shape((), (256,) * 4), 200, 1_000, 4_096, 128),
            "cnn": Stream(Shape((32, 32, 32), (256, 256)), 200, 1_000, 4_096, 128),
        },
    ),
    # Figure 5: 20 million steps, 200 sets of labels. The paper states neither batch size nor strides nor seeds.
    "paper": Preset(
        "cifar10",
        5,
        {
            "mlp": Stream(Shape((), (512,) * 4), 200, 100_000, 50_000, 128),
            "cnn": Stream(Shape((32,) * 4, (256, 256)), 200, 100_000, 50_000, 128),
        },
    ),
}


class Settings(NamedTuple):
    """What decides the outcome, apart from arms, rates and seeds."""

    dataset: str
    seeds: int
    streams: Mapping[str, Stream]
    strengths: Strengths


@dataclasses.dataclass(frozen=True)
class Config:
    """Interventions against loss of plasticity, each without and with NaP, on random labels drawn anew every task.

    Attributes:
      preset: Sizes of the run. `cpu`: 210 thousand steps of five stacked networks, five minutes of one core. `gpu` (6.8
        million steps of ten) and `paper` (680 million of five; the paper's rate is --learning-rate 1e-4) are sized for
        one GPU and have not been timed on one; on two cores they would take days and years.
      dataset: Embedded `digits` or `mnist`, else any TFDS name such as `cifar10`; by default the preset's.
      data_dir: Where prepared datasets lie; by default TFDS_DATA_DIR or a folder in the user's cache.
      networks: The networks to run.
      arms: The cells of the grid to run; `_nap` are those with NaP.
      tasks: How often the labels are drawn anew; by default the preset's, for each network.
      steps: Optimizer steps per task; by default the preset's, for each network.
      images: How many images are memorised; by default the preset's, for each network.
      batch_size: Images per step; by default the preset's, for each network.
      seeds: Number of seeds, trained together; by default the preset's.
      first_seed: The first of them; a sweep uses others.
      mlp_widths: Units of the hidden layers of the MLP; by default the preset's.
      cnn_channels: Channels of the convolutions, 3 x 3 with stride 2; by default the preset's.
      cnn_widths: Units of the hidden layers after them; by default the preset's.
      learning_rate: One rate for every arm, instead of each arm's best of the sweep.
      learning_rates: The grid of --sweep.
      weight_decay: AdamW's coefficient in `l2`; a step shrinks kernels by this times the learning rate.
      l2_init: Fraction of the distance to the initial parameters removed per step in `l2_init`.
      shrink: Share of the parameters that stays between tasks in `shrink`; the rest is a new initialisation.
      dormancy: Units with at most this share of their layer's mean activation are reset between tasks in `redo`.
      update_noise: Standard deviation of the noise added to kernels per step in `noise`, in learning rates.
      readout_decay: Fraction of the distance of the readout to its initial value removed per step in `readout`.
      affine_decay: Fraction of the distance of scale and offset to (1, 0) removed per step by NaP.
      sweep: Run every arm at every rate of the grid and write the sweep file.
      sweep_file: The sweep to read or write; by default the one of the dataset in experiments/sweeps, or where there is
        none the one of digits to read.
      quick: A taste: fewer tasks and seeds.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default dataset and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
      checkpoint_every: Tasks between checkpoints.
    """

    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    dataset: str | None = None
    data_dir: Path | None = None
    networks: tuple[Literal["mlp", "cnn"], ...] = ("mlp", "cnn")
    arms: tuple[str, ...] = tuple(ARMS)
    tasks: int | None = None
    steps: int | None = None
    images: int | None = None
    batch_size: int | None = None
    seeds: int | None = None
    first_seed: int = 0
    mlp_widths: tuple[int, ...] | None = None
    cnn_channels: tuple[int, ...] | None = None
    cnn_widths: tuple[int, ...] | None = None
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 0.1
    l2_init: float = 1e-3
    shrink: float = 0.5
    dormancy: float = 0.1
    update_noise: float = 0.3
    readout_decay: float = 1e-3
    affine_decay: float = 1e-3
    sweep: bool = False
    sweep_file: Path | None = None
    quick: bool = False
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        _require_some("arms", self.arms, tuple(ARMS))
        _require_some("networks", self.networks, NETWORKS)
        for name in ("tasks", "steps", "images", "batch_size", "seeds", "checkpoint_every"):
            value = getattr(self, name)
            require(name, value, value is None or value >= 1, "at least 1")
        for name in ("mlp_widths", "cnn_channels", "cnn_widths"):
            value = getattr(self, name)
            require(name, value, value is None or (value and min(value) >= 1), "one or more sizes of at least 1")
        require("first_seed", self.first_seed, self.first_seed >= 0, "at least 0")
        rates = self.learning_rates if self.learning_rate is None else (self.learning_rate, *self.learning_rates)
        for rate in rates:
            require("learning_rate", rate, math.isfinite(rate) and rate > 0, "positive and finite")
        if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
            raise UsageError(f"--learning-rates takes one or more different rates; got {self.learning_rates}.")
        for name in ("weight_decay", "dormancy", "update_noise"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "finite and at least 0")
        for name in _FRACTIONS:
            require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name, stream in self.resolved().streams.items():
            if stream.batch_size > stream.images:
                raise UsageError(f"--batch-size {stream.batch_size} is larger than --images {stream.images} ({name}).")
        self._check_sweep()
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")

    def _check_sweep(self) -> None:
        if self.sweep and self.learning_rate is not None:
            raise UsageError(f"--sweep runs all --learning-rates; drop --learning-rate {self.learning_rate:g}.")
        apart = ("dataset", "data_dir", "sweep", "sweep_file", "out", "run", "resume", "first_seed", "checkpoint_every")
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in apart and getattr(self, field.name) != field.default
        ]
        if self.sweep and self.sweep_file is None and changed:
            raise UsageError(
                f"--sweep with other {', '.join(changed)} than the default would replace the sweep that all other runs "
                "read; name a file of its own with --sweep-file."
            )

    def resolved(self) -> Settings:
        """All sizes spelt out."""
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in ("tasks", "steps", "images", "batch_size")}
        given = {name: value for name, value in given.items() if value is not None}
        seeds = preset.seeds if self.seeds is None else self.seeds
        streams = {name: self._stream(preset.streams[name], name)._replace(**given) for name in self.networks}
        if self.quick:
            seeds = min(seeds, QUICK_SEEDS)
            streams = {k: s._replace(tasks=min(s.tasks, QUICK_TASKS)) for k, s in streams.items()}
        strengths = Strengths(**{name: getattr(self, name) for name in Strengths._fields})
        return Settings(self.dataset or preset.dataset, seeds, streams, strengths)

    def _stream(self, stream: Stream, network: str) -> Stream:
        channels, widths = stream.shape
        if network == "mlp":
            return stream._replace(shape=Shape(channels, self.mlp_widths or widths))
        return stream._replace(shape=Shape(self.cnn_channels or channels, self.cnn_widths or widths))

    def setting(self) -> dict[str, Any]:
        """What decides what is learned, and from which seeds, for the record."""
        settings = self.resolved()
        streams = {name: {**s._asdict(), "shape": s.shape._asdict()} for name, s in settings.streams.items()}
        return settings._asdict() | {
            "streams": streams,
            "strengths": settings.strengths._asdict(),
            "first_seed": self.first_seed,
        }


def _require_some(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise UsageError(f"--{name} takes different ones of {', '.join(known)}; got {' '.join(given) or 'none'}.")
