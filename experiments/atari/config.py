"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from experiments import UsageError
from experiments.atari.arms import ARMS
from experiments.atari.games import FRAME_SKIP

TEN_GAMES = (
    "alien",
    "asterix",
    "boxing",
    "breakout",
    "enduro",
    "freeway",
    "pong",
    "qbert",
    "seaquest",
    "space_invaders",
)
SEGMENTS = 10


class Preset(NamedTuple):
    """Sizes of a run."""

    games: tuple[str, ...]
    visits: int
    frames: int
    envs: int
    replay: int
    warm_up: int
    seeds: int


PRESETS: Mapping[str, Preset] = {
    "cpu": Preset(("breakout", "pong"), visits=1, frames=20_000, envs=4, replay=10_000, warm_up=1_000, seeds=1),
    "gpu": Preset(TEN_GAMES, visits=2, frames=2_000_000, envs=16, replay=500_000, warm_up=20_000, seeds=3),
    "paper": Preset(TEN_GAMES, visits=2, frames=20_000_000, envs=16, replay=1_000_000, warm_up=20_000, seeds=4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Rainbow on a sequence of Atari games. Needs ale-py (GPL-2.0).

    Attributes:
      preset: Sizes of the run. `cpu` only shows that everything works (200 thousand frames in all, at which nothing is
        learned). `gpu` (600 million frames) and `paper` (8 billion, the paper's 20 million per game and two visits of
        ten games) need one GPU and many cores for the emulators; no preset has been timed.
      arms: The methods to compare.
      games: ROM names in their order; by default the preset's. The paper takes the ten games of Abbas et al. 2023
        (arXiv 2303.07507) without repeating their list: the default is ten games of our own choice, give theirs here.
      visits: How often the sequence is gone through; by default the preset's.
      frames: Frames per visit of a game, four per action; by default the preset's.
      envs: Copies of the game played at once; by default the preset's.
      replay: Transitions kept; by default the preset's.
      warm_up: Transitions of a game before learning begins; by default the preset's.
      seeds: Number of seeds, one after the other; by default the preset's.
      learning_rate: Peak of the schedule. The paper prints 6.25e-5 and 6.25e-4; the former is Rainbow's own.
      cosine: The schedule of the paper's sequence in all arms: warm-up and cosine.
      affine_decay: Fraction of the distance of scale and offset to (1, 0) removed per step in the NaP arms; the paper
        names none.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default the time.
      resume: Folder of an interrupted run to continue, from the last finished game; it brings its own settings.
    """

    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    arms: tuple[str, ...] = tuple(ARMS)
    games: tuple[str, ...] | None = None
    visits: int | None = None
    frames: int | None = None
    envs: int | None = None
    replay: int | None = None
    warm_up: int | None = None
    seeds: int | None = None
    learning_rate: float = 6.25e-5
    cosine: bool = False
    affine_decay: float = 1e-3
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise UsageError(f"--arms takes different ones of {', '.join(ARMS)}; got {' '.join(self.arms) or 'none'}.")
        for name in ("visits", "frames", "envs", "replay", "warm_up", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning-rate must be positive and finite, got {self.learning_rate}.")
        if not 0 <= self.affine_decay <= 1:
            raise UsageError(f"--affine-decay must be between 0 and 1, got {self.affine_decay}.")
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")
        sizes = self.sizes()
        if not sizes.games:
            raise UsageError("--games takes one or more games; got none.")
        if sizes.frames < SEGMENTS * FRAME_SKIP * sizes.envs:
            least = SEGMENTS * FRAME_SKIP * sizes.envs
            raise UsageError(f"--frames must be at least {least} with --envs {sizes.envs}, got {sizes.frames}.")
        if sizes.replay < 16 * sizes.envs or sizes.warm_up < 8 * sizes.envs:
            raise UsageError(
                f"--replay must be at least 16 and --warm-up at least 8 times --envs {sizes.envs}, got {sizes.replay} "
                f"and {sizes.warm_up}."
            )

    def sizes(self) -> Preset:
        """The preset's sizes with those given in their place."""
        given = {name: getattr(self, name) for name in Preset._fields if getattr(self, name) is not None}
        return PRESETS[self.preset]._replace(**given)
