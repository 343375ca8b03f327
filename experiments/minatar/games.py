"""MinAtar games of gymnax, with one size of observation and one number of actions for a whole stream of them."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import UsageError

PIXELS = 100
GAMES = {
    "breakout": "Breakout-MinAtar",
    "freeway": "Freeway-MinAtar",
    "space_invaders": "SpaceInvaders-MinAtar",
    "asterix": "Asterix-MinAtar",
}


class Game(NamedTuple):
    """One game; its observations are padded with empty channels, its actions with ones that do nothing.

    Attributes:
      name: As on the command line.
      channels: Channels of a padded observation.
      actions: Number of actions, padded ones included.
      reset: `reset(key) -> (observation (100, channels) of float32, state)`.
      step: `step(key, state, action) -> (observation, state, reward, done)`; a finished game starts anew at once.
    """

    name: str
    channels: int
    actions: int
    reset: Callable[[jax.Array], tuple[jax.Array, Any]]
    step: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any, jax.Array, jax.Array]]


def load(names: Sequence[str]) -> list[Game]:
    """The named games, all with the channels and actions of the largest.

    Args:
      names: Keys of `GAMES`.

    Returns:
      The games, in that order.

    Raises:
      UsageError: If gymnax is not installed.
    """
    if importlib.util.find_spec("gymnax") is None:
        raise UsageError(
            'The games come from gymnax, which is not installed: pip install -e ".[experiments,rl]" (gymnax 1.0 needs '
            f"jax<0.12; this is jax {jax.__version__})."
        )
    gymnax = importlib.import_module("gymnax")
    made = [gymnax.make(GAMES[name]) for name in names]
    channels = max(env.obs_shape[-1] for env, _ in made)
    actions = max(env.num_actions for env, _ in made)
    return [_padded(name, env, params, channels, actions) for name, (env, params) in zip(names, made, strict=True)]


def _padded(name: str, env: Any, params: Any, channels: int, actions: int) -> Game:
    missing, own = channels - env.obs_shape[-1], env.num_actions

    def pad(observation: jax.Array) -> jax.Array:
        return jnp.pad(observation.reshape(PIXELS, -1), ((0, 0), (0, missing)))

    def reset(key: jax.Array) -> tuple[jax.Array, Any]:
        observation, state = env.reset(key, params)
        # The states of gymnax hold Python numbers after a reset and arrays after a step: one type, for lax.scan.
        return pad(observation), jax.tree.map(jnp.asarray, state)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
        # The first action of every game does nothing.
        known = jnp.where(action < own, action, 0)
        observation, state, reward, terminated, truncated, _ = env.step(key, state, known, params)
        return pad(observation), state, reward, terminated | truncated

    return Game(name, channels, actions, reset, step)
