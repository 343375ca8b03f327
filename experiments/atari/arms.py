"""The methods under comparison: Rainbow's network and optimizer, with and without norms, projection and schedule."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

import normjax as nj
from experiments.atari.network import READOUTS

# Of the implementation that the paper builds on: Adam's epsilon and the clipping of gradients.
EPSILON, MAX_GRADIENT_NORM = 0.005 / 32, 10.0
# The paper's schedules end at 1e-6 and warm up from 1e-8.
LAST_RATE, FIRST_RATE, WARM_UP = 1e-6, 1e-8, 1000
TRACK_EVERY = 100


class Arm(NamedTuple):
    """One method.

    Attributes:
      label: As tables show it.
      normalized: Whether a norm precedes every nonlinearity.
      projected: Whether hidden kernels keep their norms, and scales and offsets are pulled to (1, 0).
      schedule: Of the learning rate within each game.
      fresh: Whether every game starts with a new network.
    """

    label: str
    normalized: bool
    projected: bool = False
    schedule: str = "constant"
    fresh: bool = False


ARMS: Mapping[str, Arm] = {
    "plain": Arm("Rainbow", False),
    "ln": Arm("Rainbow + LN", True),
    "nap": Arm("NaP", True, projected=True),
    "nap_linear": Arm("NaP, linear decay of the rate", True, projected=True, schedule="linear"),
    "fresh": Arm("NaP, linear decay, a fresh network per game", True, projected=True, schedule="linear", fresh=True),
}


def learning_rate(schedule: str, peak: float, steps: int) -> optax.Schedule:
    """The rate by optimizer step: `constant`, `linear` over half of the steps, or `cosine` with warm-up."""
    last = min(LAST_RATE, peak)
    if schedule == "cosine":
        warm_up = min(WARM_UP, max(1, steps // 10))
        return optax.warmup_cosine_decay_schedule(min(FIRST_RATE, peak), peak, warm_up, max(steps, warm_up + 1), last)
    if schedule == "linear":
        return optax.linear_schedule(peak, last, max(1, steps // 2))
    return optax.constant_schedule(peak)


def hidden_kernels(params: Any) -> dict[str, Any]:
    """Mask of the kernels that feed a norm. The readouts must grow; the noise must be free to shrink."""
    return {
        layer: {name: name == "kernel" and layer not in READOUTS and layer.startswith("hidden_") for name in leaves}
        for layer, leaves in params.items()
    }


def optimizer(arm: Arm, rate: optax.Schedule, affine_decay: float) -> optax.GradientTransformation:
    """The optimizer of one game, with telemetry of the hidden kernels."""
    adam = optax.adam(rate, eps=EPSILON)
    if arm.projected:
        method = nj.nap(
            adam,
            mask=hidden_kernels,
            scale_offset="decay",
            rate=affine_decay,
            learning_rate=rate,
            track_every=TRACK_EVERY,
        )
    else:
        method = optax.chain(adam, nj.track_effective_lr(rate, every_k=TRACK_EVERY, mask=hidden_kernels))
    return optax.chain(optax.clip_by_global_norm(MAX_GRADIENT_NORM), method)
