"""One phase of reinforcement learning as one compiled function, for all seeds of an arm at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

import normjax as nj
from experiments.minatar.algorithms import Algorithm, Batch, lambda_returns
from experiments.minatar.arms import Arm, Strengths, optimizer
from experiments.minatar.games import PIXELS, Game
from experiments.plasticity import metrics, model
from experiments.plasticity.training import NORM, stream

# A phase is reported in this many parts.
SEGMENTS = 10
CURVES = ("episode_return", "hidden_effective_lr", "dead_units")
METRICS = (*CURVES, "hidden_norm_ratio", "readout_norm_ratio", "affine_norm")
# Every fourth transition of a round is a probe wide enough to tell dead units by.
PROBE = slice(None, None, 4)
# Streams of randomness of one seed.
_PARAMETERS, _TASK, _PLAY = range(3)


class Setting(Protocol):
    """What training reads from the configuration."""

    @property
    def envs(self) -> int:
        """Copies of the game that are played at once."""
        ...

    @property
    def steps(self) -> int:
        """Steps per phase, of all copies together."""
        ...

    @property
    def width(self) -> int:
        """Units per hidden layer."""
        ...

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        ...

    @property
    def strengths(self) -> Strengths:
        """Strengths of regularization."""
        ...


class Agent(NamedTuple):
    """What outlives a phase: the parameters, and those they began with, which radii and pulls refer to."""

    params: Any
    initial: Any


class Task(NamedTuple):
    """The game as one seed sees it.

    Attributes:
      pixels: `(100,)` int32, a permutation.
      channels: `(channels,)` int32, a permutation.
      actions: `(actions,)` int32, a permutation.
    """

    pixels: jax.Array
    channels: jax.Array
    actions: jax.Array


class Trainer(NamedTuple):
    """Compiled functions of one arm and game; every leaf has a leading axis of seeds.

    Attributes:
      init: `init(seeds, phase) -> Agent`.
      train: `train(agent, seeds, phase, rate, tasks) -> (Agent, {metric: (seeds,) or (seeds, SEGMENTS)})`; consumes
        the agent.
    """

    init: Callable[[jax.Array, jax.Array], Agent]
    train: Callable[[Agent, jax.Array, jax.Array, jax.Array, Task], tuple[Agent, dict[str, jax.Array]]]


class _Play(NamedTuple):
    """The games in progress, and the returns of those finished in this segment."""

    state: Any
    observation: jax.Array
    running: jax.Array
    finished: jax.Array
    episodes: jax.Array


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def draw_task(seeds: jax.Array, phase: jax.Array, channels: int, actions: int, permuted: bool) -> Task:
    """The task of one phase for every seed; all arms get the same, which pairs them seed by seed."""

    def draw(seed: jax.Array) -> Task:
        if not permuted:
            return Task(*(jnp.arange(n, dtype=jnp.int32) for n in (PIXELS, channels, actions)))
        keys = jax.random.split(stream(seed, _TASK, phase), 3)
        sizes = (PIXELS, channels, actions)
        return Task(*(jax.random.permutation(k, n).astype(jnp.int32) for k, n in zip(keys, sizes, strict=True)))

    return jax.vmap(draw)(seeds)


def rounds(algorithm: Algorithm, setting: Setting) -> int:
    """Rounds of playing and learning per segment."""
    return setting.steps // (SEGMENTS * setting.envs * algorithm.horizon)


def make_trainer(arm: Arm, algorithm: Algorithm, game: Game, setting: Setting) -> Trainer:
    """Builds the functions that train all seeds of one arm on one game.

    Args:
      arm: The method.
      algorithm: PQN or PPO.
      game: The game, of the stream's common size.
      setting: Sizes and strengths.

    Returns:
      The trainer; `train` compiles once, whatever the phase, task and learning rate.
    """
    norm = NORM if arm.method.normalized else None
    outputs = algorithm.outputs(game.actions)
    sizes = (PIXELS * game.channels, *[setting.width] * setting.depth, outputs)
    per_segment = rounds(algorithm, setting)
    per_round = algorithm.epochs * algorithm.minibatches

    @jax.jit
    def init(seeds: jax.Array, phase: jax.Array) -> Agent:
        params = jax.vmap(lambda seed: model.init(stream(seed, _PARAMETERS, phase), sizes, norm))(seeds)
        return Agent(params, jax.tree.map(jnp.copy, params))

    def forward(params: Any, observations: jax.Array) -> jax.Array:
        return model.apply(params, norm, observations).logits

    def see(task: Task, observation: jax.Array) -> jax.Array:
        return observation[..., task.pixels, :][..., task.channels].reshape(*observation.shape[:-2], -1)

    def begin(key: jax.Array, task: Task) -> _Play:
        observation, state = jax.vmap(game.reset)(jax.random.split(key, setting.envs))
        nothing = jnp.zeros(setting.envs, jnp.float32)
        return _Play(state, see(task, observation), nothing, jnp.float32(0), jnp.float32(0))

    def play(params: Any, task: Task, key: jax.Array, begun: _Play, progress: jax.Array) -> tuple[_Play, Batch]:
        def step(play: _Play, key: jax.Array) -> tuple[_Play, Any]:
            choice, move = jax.random.split(key)
            chosen = forward(params, play.observation)
            action = algorithm.act(choice, chosen, progress)
            keys = jax.random.split(move, setting.envs)
            observation, state, reward, end = jax.vmap(game.step)(keys, play.state, task.actions[action])
            running = play.running + reward
            after = _Play(
                state,
                see(task, observation),
                jnp.where(end, 0, running),
                play.finished + jnp.sum(jnp.where(end, running, 0)),
                play.episodes + jnp.sum(end, dtype=jnp.float32),
            )
            return after, (play.observation, action, chosen, reward, end)

        after, (seen, actions, chosen, rewards, ends) = jax.lax.scan(
            step, begun, jax.random.split(key, algorithm.horizon)
        )
        values = algorithm.value(jnp.concatenate([chosen[1:], forward(params, after.observation)[None]]))
        returns = lambda_returns(rewards, ends, values, algorithm.discount, algorithm.trace)
        return after, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), Batch(seen, actions, chosen, returns))

    def train(
        agent: Agent, seed: jax.Array, phase: jax.Array, rate: jax.Array, task: Task
    ) -> tuple[Agent, dict[str, jax.Array]]:
        steps = SEGMENTS * per_segment * per_round
        transform = optimizer(arm, rate, steps, algorithm.max_gradient_norm, setting.strengths)

        def learn(carry: Any, batch: Batch) -> tuple[Any, None]:
            params, opt_state = carry
            grads = jax.grad(lambda p: algorithm.loss(forward(p, batch.observations), batch))(params)
            updates, opt_state = transform.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def epoch(carry: Any, key: jax.Array, data: Batch) -> tuple[Any, None]:
            order = jax.random.permutation(key, setting.envs * algorithm.horizon).reshape(algorithm.minibatches, -1)
            carry, _ = jax.lax.scan(lambda c, chosen: learn(c, jax.tree.map(lambda x: x[chosen], data)), carry, order)
            return carry, None

        def turn(carry: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            learned, playing = carry
            key, number = given
            play_key, learn_key = jax.random.split(key)
            progress = number / (SEGMENTS * per_segment)
            playing, data = play(learned[0], task, play_key, playing, progress)
            # A scan, not a Python loop: the epochs are compiled once.
            keys = jax.random.split(learn_key, algorithm.epochs)
            learned, _ = jax.lax.scan(lambda c, k: epoch(c, k, data), learned, keys)
            dead = _dead_units(model.apply(learned[0], norm, data.observations[PROBE]).activations)
            return (learned, playing), (_effective_rate(learned[1]), dead)

        def segment(carry: Any, given: Any) -> tuple[Any, dict[str, jax.Array]]:
            learned, playing = carry
            playing = playing._replace(finished=jnp.float32(0), episodes=jnp.float32(0))
            carry, (effective, dead) = jax.lax.scan(turn, (learned, playing), given)
            episodes, finished = carry[1].episodes, carry[1].finished
            mean = jnp.where(episodes > 0, finished / jnp.maximum(episodes, 1), jnp.nan)
            return carry, dict(zip(CURVES, (mean, jnp.mean(effective), jnp.mean(dead)), strict=True))

        begin_key, key = jax.random.split(stream(seed, _PLAY, phase))
        # Of the initial parameters, not the current ones: a new optimizer must not take what they have become for the
        # norms to project to and the values to pull to.
        learned = (agent.params, transform.init(agent.initial))
        keys = jax.random.split(key, (SEGMENTS, per_segment))
        numbers = jnp.arange(SEGMENTS * per_segment, dtype=jnp.float32).reshape(SEGMENTS, per_segment)
        begun = begin(begin_key, task)
        ((params, opt_state), _), curves = jax.lax.scan(segment, (learned, begun), (keys, numbers))
        measured = {**curves, **_norms(opt_state), "affine_norm": metrics.affine_norm(params)}
        return Agent(params, agent.initial), measured

    return Trainer(init, jax.jit(jax.vmap(train, in_axes=(0, 0, None, None, 0)), donate_argnums=0))


def _hidden(values: dict[str, Any]) -> jax.Array:
    return jnp.mean(jnp.stack([value for path, value in values.items() if path.startswith("hidden_")]))


def _dead_units(activations: list[jax.Array]) -> jax.Array:
    return jnp.mean(jnp.stack([metrics.dead_units(a) for a in activations]))


def _effective_rate(opt_state: Any) -> jax.Array:
    return _hidden(nj.effective_learning_rates(opt_state))


def _norms(opt_state: Any) -> dict[str, jax.Array]:
    growth = {path: motion.growth for path, motion in nj.weight_motion(opt_state).items()}
    # Of a stack of one.
    return {"hidden_norm_ratio": _hidden(growth), "readout_norm_ratio": growth[f"{model.READOUT}/kernel"][0]}
