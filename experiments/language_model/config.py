"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from experiments import UsageError
from experiments.language_model import arms
from experiments.runs import require

Mesh = Literal["data", "fsdp", "tensor", "mixed"]
QUICK: dict[str, Any] = {"arms": ("pre", "post", "peri", "peri+nap"), "steps": 40, "chunk": 10, "warmup": 5}
# The language model of the NaP paper; its context is not stated, and its tokens were not bytes.
LARGE: dict[str, Any] = {
    "arms": ("pre", "pre+nap"),
    "layers": 12,
    "heads": 12,
    "width": 1536,
    "batch_size": 128,
    "length": 1024,
    "steps": 30_000,
    "chunk": 100,
    "warmup": 1000,
    "learning_rate": 2e-4,
    "high_rate": 1.0,
    "seeds": 1,
    "qk_norm": True,
    "bfloat16": True,
    "scan": True,
    "remat": True,
    "most_bytes": 1 << 32,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A byte-level language model under every placement of its norms.

    Attributes:
      dataset: `python` (the standard library's source, embedded), else any TFDS name with a text such as `lm1b`.
      data_dir: Where prepared datasets lie; by default TFDS_DATA_DIR or a folder in the user's cache.
      most_bytes: Longest training text to hold in memory.
      arms: PLACEMENT, PLACEMENT/NORM, either with +nap.
      layers: Blocks.
      width: Features of the stream; the feed-forward layer has four times as many.
      heads: Heads of attention.
      qk_norm: Whether queries and keys are normalized.
      bfloat16: Whether to compute in bfloat16; parameters, statistics and loss stay in float32.
      scan: Whether equal blocks are one compiled loop: fast to compile when deep, slower on a CPU.
      remat: Whether the backward pass computes blocks again.
      length: Bytes that a window predicts.
      batch_size: Windows per step.
      steps: Optimizer steps.
      chunk: Steps per record; divides the steps.
      warmup: Steps of linear warm-up.
      learning_rate: Highest rate of AdamW.
      high_rate: Every arm runs at this multiple of it as well; 1 for not.
      weight_decay: AdamW's coefficient, on matrices.
      seeds: Number of seeds, trained together with both rates.
      validation_windows: Windows of the validation text.
      mesh: How to use all devices; by default one is used.
      model_axis: Devices of the mesh that cut layers, for `tensor` and `mixed`.
      preset: `400m` takes the NaP paper's sizes wherever a setting is left at its default.
      quick: A taste: fewer arms and steps.
      compile_for: Compile for a TPU topology such as v5e:4x4 instead of running; needs libtpu, no TPU.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default dataset and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
      checkpoint_every: Chunks between checkpoints.
    """

    dataset: str = "python"
    data_dir: Path | None = None
    most_bytes: int = 1 << 26
    arms: tuple[str, ...] = arms.DEFAULT
    layers: int = 4
    width: int = 64
    heads: int = 4
    qk_norm: bool = False
    bfloat16: bool = False
    scan: bool = False
    remat: bool = False
    length: int = 64
    batch_size: int = 8
    steps: int = 200
    chunk: int = 20
    warmup: int = 20
    learning_rate: float = 3e-3
    high_rate: float = 10.0
    weight_decay: float = 0.1
    seeds: int = 3
    validation_windows: int = 64
    mesh: Mesh | None = None
    model_axis: int = 2
    preset: Literal["400m"] | None = None
    quick: bool = False
    compile_for: str | None = None
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UsageError(f"--arms takes one or more different arms; got {' '.join(self.arms) or 'none'}.")
        for name in COUNTS:
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require("warmup", self.warmup, self.warmup >= 0, "at least 0")
        require("heads", self.heads, self.width % (2 * self.heads) == 0, "a divisor of half the width")
        require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive and finite")
        require("high_rate", self.high_rate, 1 <= self.high_rate < math.inf, "finite and at least 1")
        require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "finite and at least 0")
        spelt = self if self.preset is None and not self.quick else self.resolved()
        if spelt.steps % spelt.chunk or spelt.warmup >= spelt.steps:
            raise UsageError(
                f"--steps {spelt.steps} must be a multiple of --chunk {spelt.chunk} and more than --warmup "
                f"{spelt.warmup}."
            )
        for name in self.arms:
            arm = arms.parse(name)
            if arm.nap and not arms.invariant(arm, arms.stack(arm, spelt)):
                raise UsageError(
                    f"--arms {name}: this placement with this norm makes no matrix scale-invariant, so there is "
                    "nothing to project; --qk-norm makes queries' and keys' so."
                )
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")

    def resolved(self) -> "Config":
        """The configuration with `preset` and `quick` spelt out: they replace what was left at its default."""
        presets = (LARGE if self.preset else {}) | (QUICK if self.quick else {})
        default = {field.name: field.default for field in dataclasses.fields(self)}
        taken = {name: value for name, value in presets.items() if getattr(self, name) == default[name]}
        return dataclasses.replace(self, **taken, preset=None, quick=False)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of each arm."""
        return tuple(dict.fromkeys((self.learning_rate, self.learning_rate * self.high_rate)))

    def setting(self) -> dict[str, Any]:
        """The fields that decide what is learned."""
        apart = ("data_dir", "arms", "mesh", "model_axis", "preset", "quick", "compile_for")
        apart = (*apart, "out", "run", "resume", "checkpoint_every")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in apart}


COUNTS = ("most_bytes", "layers", "width", "heads", "length", "batch_size", "steps", "chunk", "seeds")
COUNTS = (*COUNTS, "validation_windows", "model_axis", "checkpoint_every")
