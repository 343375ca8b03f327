"""What can be set about the experiment, and what is refused."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from experiments import UsageError
from experiments.minatar.algorithms import ALGORITHMS
from experiments.minatar.arms import ARMS, Strengths
from experiments.minatar.games import GAMES
from experiments.minatar.training import SEGMENTS
from experiments.runs import require

QUICK_PHASES, QUICK_SEEDS, QUICK_STEPS = 3, 2, 40_960


class Preset(NamedTuple):
    """Sizes of a run."""

    stream: Literal["permuted", "cycle"]
    phases: int
    steps: int
    envs: int
    width: int
    depth: int
    seeds: int


PRESETS: Mapping[str, Preset] = {
    "cpu": Preset("permuted", phases=10, steps=122_880, envs=64, width=64, depth=2, seeds=5),
    "gpu": Preset("permuted", phases=20, steps=2_621_440, envs=1024, width=256, depth=2, seeds=10),
    # Two visits of four games, as the paper visits each of its ten games twice; sizes as published for PQN.
    "paper": Preset("cycle", phases=8, steps=9_994_240, envs=128, width=128, depth=2, seeds=10),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Loss of plasticity on a stream of MinAtar games.

    Attributes:
      preset: Sizes of the run. `cpu`: 43 million steps in all, at most 10 minutes on two cores. `gpu` (3.7 billion
        steps) and `paper` (5.6 billion: two visits of four games) are sized for one GPU and have not been timed on one;
        on two cores they would take days.
      algorithm: Q-learning without target network and replay (PQN), or PPO.
      stream: `permuted`: new permutations of pixels, channels and actions in every phase; `cycle`: the games in turn.
        By default the preset's.
      games: Games of the stream; by default Breakout if permuted, else all four.
      arms: The methods to compare.
      phases: Number of phases; by default the preset's.
      steps: Environment steps per phase and seed, rounded down to whole rounds of learning; by default the preset's.
      envs: Copies of the game played at once; by default the preset's.
      width: Units per hidden layer; by default the preset's.
      depth: Hidden layers; by default the preset's.
      seeds: Number of seeds, trained together; by default the preset's.
      first_seed: The first of them; a sweep uses others.
      learning_rate: One rate for every arm, instead of each arm's best of the sweep.
      learning_rates: The grid of --sweep.
      weight_decay: AdamW's coefficient in the `ln_wd` arm.
      affine_decay: Fraction of the distance of scale and offset to (1, 0) removed per step in `ln_wd` and the NaP arms.
      sweep: Run every arm at every rate of the grid and write the sweep file.
      sweep_file: The sweep to read or write; by default the one of stream and algorithm in experiments/sweeps.
      quick: A taste: fewer phases, steps and seeds.
      out: Folder of all runs.
      run: Name of this run's folder in it; by default stream, algorithm and time.
      resume: Folder of an interrupted run to continue; it brings its own settings.
    """

    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    algorithm: Literal["pqn", "ppo"] = "pqn"
    stream: Literal["permuted", "cycle"] | None = None
    games: tuple[Literal["breakout", "freeway", "space_invaders", "asterix"], ...] | None = None
    arms: tuple[str, ...] = tuple(ARMS)
    phases: int | None = None
    steps: int | None = None
    envs: int | None = None
    width: int | None = None
    depth: int | None = None
    seeds: int | None = None
    first_seed: int = 0
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    weight_decay: float = 0.1
    affine_decay: float = 1e-3
    sweep: bool = False
    sweep_file: Path | None = None
    quick: bool = False
    out: Path = Path("results")
    run: str | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise UsageError(f"--arms takes different ones of {', '.join(ARMS)}; got {' '.join(self.arms) or 'none'}.")
        if self.games is not None and (not self.games or not set(self.games) <= set(GAMES)):
            raise UsageError(f"--games takes some of {', '.join(GAMES)}; got {' '.join(self.games) or 'none'}.")
        for name in ("phases", "steps", "envs", "width", "depth", "seeds"):
            value = getattr(self, name)
            require(name, value, value is None or value >= 1, "at least 1")
        require("first_seed", self.first_seed, self.first_seed >= 0, "at least 0")
        rates = self.learning_rates if self.learning_rate is None else (self.learning_rate, *self.learning_rates)
        for rate in rates:
            require("learning_rate", rate, math.isfinite(rate) and rate > 0, "positive and finite")
        if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
            raise UsageError(f"--learning-rates takes one or more different rates; got {self.learning_rates}.")
        require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "finite and at least 0")
        require("affine_decay", self.affine_decay, 0 <= self.affine_decay <= 1, "between 0 and 1")
        if self.sweep and self.learning_rate is not None:
            raise UsageError(f"--sweep runs all --learning-rates; drop --learning-rate {self.learning_rate:g}.")
        if self.sweep and self.sweep_file is None and (self.quick or set(self.arms) != set(ARMS)):
            raise UsageError(
                "--sweep with --quick or only some of the arms would replace the sweep that all other runs read; name "
                "a file of its own with --sweep-file."
            )
        if self.run is not None and Path(self.run).name != self.run:
            raise UsageError(f"--run is the name of a folder in --out, got {self.run!r}.")

    def resolved(self) -> "Settings":
        """All sizes spelt out.

        Raises:
          UsageError: If a phase is too short for the algorithm.
        """
        sizes = PRESETS[self.preset]._asdict()
        if self.quick:
            sizes |= {"phases": QUICK_PHASES, "steps": QUICK_STEPS, "seeds": QUICK_SEEDS}
        sizes |= {name: getattr(self, name) for name in sizes if getattr(self, name) is not None}
        games = self.games or (("breakout",) if sizes["stream"] == "permuted" else tuple(GAMES))
        if self.phases is None and sizes["stream"] == "cycle":
            sizes["phases"] = 2 * len(games)
        algorithm = ALGORITHMS[self.algorithm]
        transitions = sizes["envs"] * algorithm.horizon
        if sizes["steps"] < SEGMENTS * transitions:
            raise UsageError(
                f"--steps must be at least {SEGMENTS * transitions} with --envs {sizes['envs']} and {algorithm.label}, "
                f"got {sizes['steps']}."
            )
        sizes["steps"] -= sizes["steps"] % (SEGMENTS * transitions)
        strengths = Strengths(self.weight_decay, self.affine_decay)
        return Settings(algorithm=self.algorithm, games=games, strengths=strengths, **sizes)


class Settings(NamedTuple):
    """What decides the outcome, apart from arms, rates and seeds; `Config` has the words for it."""

    algorithm: str
    games: tuple[str, ...]
    strengths: Strengths
    stream: str
    phases: int
    steps: int
    envs: int
    width: int
    depth: int
    seeds: int
