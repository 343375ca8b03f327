"""Atari games through ale-py's vector environment."""

import importlib
import importlib.util
from typing import Any, NamedTuple

import numpy as np

from experiments import UsageError

# All actions of the console in every game: one readout for the whole sequence.
ACTIONS = 18
FRAME_SKIP = 4


class Step(NamedTuple):
    """What the environments answer: observations `(envs, 84, 84, 4)`, rewards and ends `(envs,)`."""

    observations: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray


class Games:
    """Copies of one game; a finished one starts anew within the same step.

    Args:
      game: ROM name, as `ms_pacman`.
      envs: Number of copies.
      seed: Of the first; the others follow.

    Raises:
      UsageError: If ale-py is not installed or does not have the game.
    """

    def __init__(self, game: str, envs: int, seed: int) -> None:
        require(game)
        vector = importlib.import_module("ale_py.vector_env")
        self._env: Any = vector.AtariVectorEnv(
            game, envs, full_action_space=True, reward_clipping=False, autoreset_mode="SameStep"
        )
        self._seed = seed

    def reset(self) -> np.ndarray:
        """First observations."""
        return _last_axis(self._env.reset(seed=self._seed)[0])

    def step(self, actions: np.ndarray) -> Step:
        """Plays one action, over four frames, in every copy."""
        observations, rewards, terminated, truncated, _ = self._env.step(np.asarray(actions, np.int32))
        return Step(_last_axis(observations), np.asarray(rewards, np.float32), terminated | truncated)

    def close(self) -> None:
        """Ends the emulators."""
        self._env.close()


def require(game: str) -> None:
    """Refuses a game that cannot be played.

    Raises:
      UsageError: If ale-py or gymnasium is not installed, or ale-py does not have the game.
    """
    if importlib.util.find_spec("ale_py") is None or importlib.util.find_spec("gymnasium") is None:
        raise UsageError(
            'Atari needs ale-py, which is not installed; it is licensed under GPL-2.0: pip install -e ".[experiments,'
            'atari]".'
        )
    roms = importlib.import_module("ale_py.roms")
    known = roms.get_all_rom_ids()
    if game not in known:
        raise UsageError(
            f"ale-py has no game {game!r}; names are those of its ROMs, as {', '.join(sorted(known)[:5])}."
        )


def _last_axis(observations: np.ndarray) -> np.ndarray:
    return np.moveaxis(observations, 1, -1)
