"""PQN and PPO, both as four pure functions around one rollout and one recursion for returns.

References:
  Gallici et al. 2024, Simplifying deep temporal difference learning, arXiv 2407.04811.
  Schulman et al. 2017, Proximal policy optimization algorithms, arXiv 1707.06347.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """Transitions to learn from.

    Attributes:
      observations: `(n, ...)` float32.
      actions: `(n,)` int32.
      outputs: `(n, outputs)` of the network that chose the actions.
      returns: `(n,)`, the values to learn.
    """

    observations: jax.Array
    actions: jax.Array
    outputs: jax.Array
    returns: jax.Array


class Algorithm(NamedTuple):
    """How a network plays and what it learns from that.

    Attributes:
      label: As tables show it.
      outputs: Outputs of the network for a number of actions.
      act: `act(key, outputs (n, outputs), progress) -> actions (n,)`; progress is the fraction of the phase done.
      value: Outputs `(..., outputs)` to the values of their states.
      loss: `loss(outputs, batch) -> scalar`.
      horizon: Steps of every environment between two rounds of learning, a multiple of the minibatches.
      epochs: How often each round goes through its transitions.
      minibatches: Optimizer steps per epoch.
      discount: Of rewards.
      trace: The return's lambda.
      max_gradient_norm: Gradients are clipped to this global norm.
    """

    label: str
    outputs: Callable[[int], int]
    act: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    value: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, Batch], jax.Array]
    horizon: int
    epochs: int
    minibatches: int
    discount: float
    trace: float
    max_gradient_norm: float


def lambda_returns(
    rewards: jax.Array, ends: jax.Array, next_values: jax.Array, discount: float, trace: float
) -> jax.Array:
    r"""Returns $G_t = r_t + \gamma (1 - d_t) (\lambda G_{t+1} + (1 - \lambda) v_{t+1})$, with $G_T = v_T$.

    Minus the values of the states they are the advantages of generalized advantage estimation.

    Args:
      rewards: `(steps, n)`, $r$.
      ends: `(steps, n)` bool, $d$: whether the episode ended with the step. One cut short counts as ended.
      next_values: `(steps, n)`, $v_{t+1}$, of the states after the steps.
      discount: $\gamma$.
      trace: $\lambda$.

    Returns:
      `(steps, n)`.
    """

    def back(following: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, end, value = step
        ahead = trace * following + (1 - trace) * value
        result = reward + discount * jnp.where(end, 0, ahead)
        return result, result

    return jax.lax.scan(back, next_values[-1], (rewards, ends, next_values), reverse=True)[1]


def _epsilon(progress: jax.Array, first: float = 1.0, last: float = 0.05, until: float = 0.1) -> jax.Array:
    return jnp.maximum(last, first + (last - first) * progress / until)


def _greedy_but(key: jax.Array, outputs: jax.Array, progress: jax.Array) -> jax.Array:
    choice, action = jax.random.split(key)
    explore = jax.random.uniform(choice, outputs.shape[:1]) < _epsilon(progress)
    return jnp.where(explore, jax.random.randint(action, outputs.shape[:1], 0, outputs.shape[-1]), outputs.argmax(-1))


def _chosen(outputs: jax.Array, actions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(outputs, actions[:, None], axis=-1)[:, 0]


def _q_loss(outputs: jax.Array, batch: Batch) -> jax.Array:
    return 0.5 * jnp.mean(jnp.square(_chosen(outputs, batch.actions) - batch.returns))


def _sampled(key: jax.Array, outputs: jax.Array, progress: jax.Array) -> jax.Array:
    del progress
    return jax.random.categorical(key, outputs[:, :-1])


def _clipped_loss(
    outputs: jax.Array, batch: Batch, clip: float = 0.2, value_weight: float = 0.5, entropy_weight: float = 0.01
) -> jax.Array:
    log_policy = jax.nn.log_softmax(outputs[:, :-1])
    before = _chosen(jax.nn.log_softmax(batch.outputs[:, :-1]), batch.actions)
    ratio = jnp.exp(_chosen(log_policy, batch.actions) - before)
    advantage = batch.returns - batch.outputs[:, -1]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    error = jnp.square(outputs[:, -1] - batch.returns)
    return jnp.mean(-gain + 0.5 * value_weight * error - entropy_weight * entropy)


# The readout gives the actions' values.
PQN = Algorithm(
    label="PQN",
    outputs=lambda actions: actions,
    act=_greedy_but,
    value=lambda outputs: outputs.max(axis=-1),
    loss=_q_loss,
    horizon=32,
    epochs=2,
    minibatches=16,
    discount=0.99,
    trace=0.65,
    max_gradient_norm=10.0,
)
# The readout gives the logits of the policy and, last, the state's value.
PPO = Algorithm(
    label="PPO",
    outputs=lambda actions: actions + 1,
    act=_sampled,
    value=lambda outputs: outputs[..., -1],
    loss=_clipped_loss,
    horizon=64,
    epochs=4,
    minibatches=8,
    discount=0.99,
    trace=0.95,
    max_gradient_norm=0.5,
)
ALGORITHMS: dict[str, Any] = {"pqn": PQN, "ppo": PPO}
