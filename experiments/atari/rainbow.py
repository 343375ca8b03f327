"""One step of Rainbow: double Q-learning of a categorical distribution of n-step returns.

References:
  Bellemare et al. 2017, A distributional perspective on reinforcement learning, arXiv 1707.06887.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.atari.network import Network
from experiments.atari.replay import Sample

HIGHEST_RETURN, ATOMS = 10.0, 51


class Learner(NamedTuple):
    """Parameters, those of the target network, and the optimizer's state."""

    params: Any
    target: Any
    opt_state: Any


class Agent(NamedTuple):
    """Compiled functions of one arm.

    Attributes:
      init: `init(key) -> params`.
      act: `act(params, key, observations (n, 84, 84, 4)) -> actions (n,)`; the noise explores.
      learn: `learn(learner, key, sample) -> (learner, errors (n,))`.
    """

    init: Callable[[jax.Array], Any]
    act: Callable[[Any, jax.Array, Any], jax.Array]
    learn: Callable[[Learner, jax.Array, Sample], tuple[Learner, jax.Array]]


def support() -> jax.Array:
    """The values `(ATOMS,)` that a return can have."""
    return jnp.linspace(-HIGHEST_RETURN, HIGHEST_RETURN, ATOMS, dtype=jnp.float32)


def project(values: Any, probabilities: jax.Array, onto: jax.Array) -> jax.Array:
    r"""The distribution on the atoms $z$ nearest to that of other values: each goes to its neighbours by closeness.

    $p_i = \sum_j \max(0, 1 - |\operatorname{clip}(v_j, z_0, z_N) - z_i| / \Delta z) \, q_j$.

    Args:
      values: `(n, m)`, $v$.
      probabilities: `(n, m)`, $q$.
      onto: `(atoms,)`, $z$, evenly spaced.

    Returns:
      `(n, atoms)`, $p$.

    Example:
      >>> import jax.numpy as jnp
      >>> print(project(jnp.array([[0.5, 9.0]]), jnp.array([[0.5, 0.5]]), jnp.array([0.0, 1.0])))
      [[0.25 0.75]]
    """
    clipped = jnp.clip(values, onto[0], onto[-1])
    distance = jnp.abs(clipped[:, None, :] - onto[None, :, None]) / (onto[1] - onto[0])
    return jnp.sum(jnp.maximum(0, 1 - distance) * probabilities[:, None, :], axis=-1)


def make_agent(network: Network, transform: optax.GradientTransformation) -> Agent:
    """Builds the functions of an agent.

    Args:
      network: Its network.
      transform: The optimizer.

    Returns:
      The agent.
    """
    atoms = support()

    def logits(params: Any, key: jax.Array, observations: Any) -> jax.Array:
        return network.apply({"params": params}, observations, rngs={"noise": key})  # pyright: ignore[reportReturnType]

    def init(key: jax.Array) -> Any:
        params_key, noise_key = jax.random.split(key)
        return network.init({"params": params_key, "noise": noise_key}, jnp.zeros((1, 84, 84, 4), jnp.uint8))["params"]

    def best(outputs: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.sum(jax.nn.softmax(outputs) * atoms[None, None, :], axis=-1), axis=-1)

    def act(params: Any, key: jax.Array, observations: jax.Array) -> jax.Array:
        return best(logits(params, key, observations))

    def errors(params: Any, target: Any, keys: jax.Array, sample: Sample) -> jax.Array:
        rows = jnp.arange(len(sample.actions))
        # Double Q-learning: the online network chooses, the target network judges.
        choice = best(logits(params, keys[0], sample.next_observations))
        judged = jax.nn.softmax(logits(target, keys[1], sample.next_observations)[rows, choice])
        returns = sample.rewards[:, None] + sample.discounts[:, None] * atoms[None, :]
        wanted = jax.lax.stop_gradient(project(returns, judged, atoms))
        log_p = jax.nn.log_softmax(logits(params, keys[2], sample.observations)[rows, sample.actions])
        return optax.losses.kl_divergence(log_p, wanted)

    def learn(learner: Learner, key: jax.Array, sample: Sample) -> tuple[Learner, jax.Array]:
        keys = jax.random.split(key, 3)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            each = errors(params, learner.target, keys, sample)
            return jnp.mean(sample.weights * each), each

        grads, each = jax.grad(loss, has_aux=True)(learner.params)
        updates, opt_state = transform.update(grads, learner.opt_state, learner.params)
        return Learner(optax.apply_updates(learner.params, updates), learner.target, opt_state), each

    return Agent(jax.jit(init), jax.jit(act), jax.jit(learn))
