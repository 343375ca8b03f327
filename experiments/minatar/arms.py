"""The methods under comparison: the optimizers of the plasticity experiment, with and without a schedule.

Every phase starts with a new optimizer and schedule, as in the paper's sequence of games.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from experiments.plasticity import arms as plasticity

# The rate of a linear schedule falls by this factor: 6.25e-5 to 1e-6 in the paper.
DECAY = 62.5


class Strengths(NamedTuple):
    """The regularization of the arms, as `experiments.plasticity.arms.Strengths`; these arms use the first two."""

    weight_decay: float
    affine_decay: float
    l2_init: float = 0.0
    readout_decay: float = 0.0


class Arm(NamedTuple):
    """One method.

    Attributes:
      label: As figures and tables show it.
      method: Network and optimizer.
      decayed: Whether the rate falls linearly within each phase; else it is constant.
      fresh: Whether every phase starts with a new network.
    """

    label: str
    method: plasticity.Arm
    decayed: bool = False
    fresh: bool = False


def optimizer(
    arm: Arm, learning_rate: Any, steps: int, max_gradient_norm: float, strengths: Strengths
) -> optax.GradientTransformation:
    """The optimizer of one phase.

    Args:
      arm: The method.
      learning_rate: Rate at the start of the phase; may be traced.
      steps: Optimizer steps per phase.
      max_gradient_norm: Gradients are clipped to it.
      strengths: Of the regularization.

    Returns:
      A transformation with telemetry.
    """
    rate = optax.linear_schedule(learning_rate, learning_rate / DECAY, steps) if arm.decayed else learning_rate
    return optax.chain(optax.clip_by_global_norm(max_gradient_norm), _of_one(arm.method.optimizer(rate, strengths)))


def _of_one(stacked: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer of stacked networks for a single one: a stack of one."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = stacked.update(_stack(updates), state, _stack(params))
        return jax.tree.map(lambda leaf: leaf[0], new), state

    return optax.GradientTransformation(lambda params: stacked.init(_stack(params)), update)


def _stack(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


ARMS: Mapping[str, Arm] = {
    "plain": Arm("no norm", plasticity.ARMS["plain"]),
    "ln": Arm("LN", plasticity.ARMS["ln"]),
    "ln_linear": Arm("LN, linear decay of the rate", plasticity.ARMS["ln"], decayed=True),
    "ln_wd": Arm("LN + weight decay, affine decayed", plasticity.ARMS["ln_wd_decay"]),
    "nap": Arm("NaP", plasticity.ARMS["nap_decay"]),
    "nap_linear": Arm("NaP, linear decay of the rate", plasticity.ARMS["nap_decay"], decayed=True),
    "fresh": Arm("LN, a fresh network per phase", plasticity.ARMS["ln"], fresh=True),
}
