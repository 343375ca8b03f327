"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from experiments import UsageError
from experiments.image_classification.arms import ARMS
from experiments.runs import require

QUICK: dict[str, Any] = {
    "arms": ("bn", "gn", "bcn_ws_micro", "bn+nap"),
    "batch_sizes": (2, 64),
    "images_seen": 2048,
    "chunks": 2,
    "seeds": 2,
}
# ResNet-18 and a small transformer on whole images.
LARGE: dict[str, Any] = {
    "images_seen": 512_000,
    "chunks": 20,
    "shrink": 1,
    "stem_stride": 1,
    "stages": 4,
    "blocks": 2,
    "width": 64,
    "groups": 32,
    "vit_layers": 6,
    "vit_width": 192,
    "vit_heads": 6,
}
COUNTS = ("images_seen", "reference_batch", "chunks", "shrink", "stem_stride", "stages", "blocks", "width", "groups")
COUNTS = (*COUNTS, "vit_layers", "vit_width", "vit_heads", "patch", "seeds", "devices", "checkpoint_every")
# They decide what is done and where, not what is learned.
APART = ("data_dir", "arms", "batch_sizes", "sweep", "sweep_file", "sgd_rate", "adam_rate", "sgd_rates", "adam_rates")
APART = (*APART, "preset", "quick", "devices", "out", "run", "resume", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class Config:
    """Norms of image networks at small batches, on corrupted images, and with NaP.

    Attributes:
      dataset: Embedded `photos`, `mnist` or `digits`, else any TFDS name with images of one size, such as `cifar10` or
        `imagenet_resized/32x32`.
      data_dir: Where prepared datasets lie; by default TFDS_DATA_DIR or a folder in the user's cache.
      images: At most as many training images; by default all.
      arms: The networks to compare.
      batch_sizes: Images per step; every arm sees equally many images at each.
      reference_batch: The batch size that learning rates are stated for, and of corruptions and NaP.
      images_seen: Training images that a run sees, over as many epochs as it takes.
      chunks: In how many records.
      shrink: Side of the squares of pixels that are averaged first.
      stem_stride: Stride of the residual network's first convolution.
      stages: Of the residual network.
      blocks: Of each stage.
      width: Channels of the first stage; each stage doubles them.
      groups: Of group and batch-channel normalization and EvoNorm.
      vit_layers: Blocks of the transformer.
      vit_width: Features of its stream.
      vit_heads: Heads of its attention.
      patch: Side of its patches, after shrinking.
      seeds: Number of seeds: network and order of the images.
      first_seed: The first of them; a sweep uses others.
      sgd_rate: One rate for all arms with SGD, instead of each arm's best of the sweep.
      adam_rate: One rate for all arms with Adam.
      sgd_rates: The grid of --sweep for arms with SGD.
      adam_rates: The same for arms with Adam.
      sweep: Run every arm at every rate of its grid, at the reference batch, and write the sweep file.
      sweep_file: The sweep to read or write; by default the dataset's in experiments/sweeps, else that of photos.
      preset: `gpu` takes larger networks and more images wherever a setting is left at its default.
      quick: A taste: fewer arms, batch sizes, images and seeds.
      devices: Over how many devices the seeds are spread.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default dataset and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
      checkpoint_every: Chunks between checkpoints.
    """

    dataset: str = "photos"
    data_dir: Path | None = None
    images: int | None = None
    arms: tuple[str, ...] = tuple(ARMS)
    batch_sizes: tuple[int, ...] = (1, 2, 8, 64)
    reference_batch: int = 64
    images_seen: int = 6144
    chunks: int = 2
    shrink: int = 2
    stem_stride: int = 2
    stages: int = 3
    blocks: int = 1
    width: int = 8
    groups: int = 4
    vit_layers: int = 2
    vit_width: int = 32
    vit_heads: int = 2
    patch: int = 4
    seeds: int = 3
    first_seed: int = 0
    sgd_rate: float | None = None
    adam_rate: float | None = None
    sgd_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    adam_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    sweep: bool = False
    sweep_file: Path | None = None
    preset: Literal["cpu", "gpu"] = "cpu"
    quick: bool = False
    devices: int = 1
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
        require("images", self.images, self.images is None or self.images >= 1, "at least 1")
        require("first_seed", self.first_seed, self.first_seed >= 0, "at least 0")
        for name in ("batch_sizes", "sgd_rates", "adam_rates"):
            values = getattr(self, name)
            fits = bool(values) and len(set(values)) == len(values) and all(0 < v < math.inf for v in values)
            require(name, values, fits, "one or more different positive numbers")
        for name in ("sgd_rate", "adam_rate"):
            rate = getattr(self, name)
            require(name, rate, rate is None or 0 < rate < math.inf, "positive and finite")
        if self.sweep and (self.sgd_rate or self.adam_rate):
            raise UsageError("--sweep runs all rates of its grids; drop --sgd-rate and --adam-rate.")
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")
        if self == self.resolved():
            self._check_sizes()

    def _check_sizes(self) -> None:
        require("groups", self.groups, self.width % self.groups == 0, f"a divisor of --width {self.width}")
        require("seeds", self.seeds, self.seeds % self.devices == 0, f"a multiple of --devices {self.devices}")
        heads = f"a divisor of --vit-width {self.vit_width}"
        require("vit_heads", self.vit_heads, self.vit_width % self.vit_heads == 0, heads)
        for batch in (*self.batch_sizes, self.reference_batch):
            if self.images_seen % (batch * self.chunks):
                raise UsageError(
                    f"--images-seen {self.images_seen} must be a multiple of --chunks {self.chunks} times each batch "
                    f"size, got the batch size {batch}."
                )

    def resolved(self) -> "Config":
        """The configuration with `preset` and `quick` spelt out: they replace what was left at its default."""
        presets = (LARGE if self.preset == "gpu" else {}) | (QUICK if self.quick else {})
        default = {field.name: field.default for field in dataclasses.fields(self)}
        taken = {name: value for name, value in presets.items() if getattr(self, name) == default[name]}
        return dataclasses.replace(self, **taken, preset="cpu", quick=False) if presets else self

    def setting(self) -> dict[str, Any]:
        """The fields that decide what is learned, and from which seeds."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in APART}
