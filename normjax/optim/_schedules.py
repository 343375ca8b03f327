"""Learning-rate schedules stated as effective rates."""

from typing import Any

import jax.numpy as jnp
import optax

from normjax.optim._leaves import is_traced


def norm_growth_schedule(learning_rate: optax.ScalarOrSchedule, relative_step: float) -> optax.Schedule:
    r"""The decay that growing, unprojected weights apply to the effective learning rate, made explicit.

    Steps of a scale-invariant weight are orthogonal to it, so with steps of constant size :math:`a r` the
    norm grows as :math:`\lVert w_t \rVert = r \sqrt{1 + a^2 t}` and the effective rate of an Adam-like
    optimizer falls as

    .. math:: \eta_t = \eta / \sqrt{1 + a^2 t} .

    Projection removes this decay; `nap(optax.adam(norm_growth_schedule(...)))` gives it back under your
    control. For SGD with gradients of constant size on the sphere and relative first step :math:`a_0` the
    law is the same with :math:`a^2 = 2 a_0^2`.

    Args:
      learning_rate: initial rate, or a schedule to multiply.
      relative_step: :math:`a`, the size of a step over the initial norm; `weight_motion(opt_state)` measures
        it as `relative_update`.

    Returns:
      A schedule: step (int32) to rate.

    Raises:
      ValueError: `relative_step` is negative.

    Example:
      >>> from normjax.optim import norm_growth_schedule
      >>> schedule = norm_growth_schedule(1e-3, relative_step=0.1)
      >>> [round(float(schedule(step)), 6) for step in (0, 300, 9900)]
      [0.001, 0.0005, 0.0001]

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, section 4.2,
      https://arxiv.org/abs/2407.01800
    """
    if not is_traced(relative_step) and not relative_step >= 0:
        raise ValueError(f"relative_step is a size and must not be negative, got {relative_step!r}.")

    def schedule(count: Any) -> Any:
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        return rate / jnp.sqrt(1.0 + relative_step**2 * jnp.asarray(count, dtype=float))

    return schedule
