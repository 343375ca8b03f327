"""Learning-rate schedules stated as effective rates, and their restarts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax.optim._leaves import at_step, is_traced, next_count, wide


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


def rewarm_schedule(schedule: optax.Schedule, task_starts: int | Sequence[int]) -> optax.Schedule:
    r"""Start a schedule again at every change of task, to raise the effective rate where there is something to learn.

    .. math:: \eta_t = s(t - \max \{ t_i : t_i \le t \}), \qquad t_0 = 0

    With projected weights the learning rate is the effective rate, so that a warm restart reaches it; free weights that
    have grown keep it low. Reset the optimizer's moments at the same steps, as sequential training does.

    Args:
      schedule: :math:`s`, of the step within a task (int32, from 0).
      task_starts: the steps at which tasks begin, or a single positive number: a task every so many steps. For changes
        that are known only when they happen: `scale_by_rewarmed_schedule`.

    Returns:
      A schedule: step (int32) to rate.

    Raises:
      ValueError: starts that are negative or not increasing, none, or a period below 1.

    Example:
      >>> import optax
      >>> from normjax.optim import rewarm_schedule
      >>> schedule = rewarm_schedule(optax.linear_schedule(1.0, 0.0, 4), task_starts=[5])
      >>> [float(schedule(step)) for step in (0, 3, 4, 5, 6)]
      [1.0, 0.25, 0.0, 1.0, 0.75]

    References:
      Lyle et al., What can grokking teach us about learning under nonstationarity?, 2025,
      https://arxiv.org/abs/2507.20057
    """
    if isinstance(task_starts, int):
        if task_starts < 1:
            raise ValueError(f"a task takes at least one step, got task_starts={task_starts}.")
        return lambda count: schedule(jnp.asarray(count, jnp.int32) % task_starts)
    starts = [0, *(start for start in task_starts if start != 0)]
    if len(task_starts) == 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"task_starts are increasing steps, got {task_starts!r}.")
    begins = np.asarray(starts, np.int32)

    def restarted(count: Any) -> Any:
        count = jnp.asarray(count, jnp.int32)
        return schedule(count - jnp.max(jnp.where(begins <= count, begins, 0)))

    return restarted


class RewarmedScheduleState(NamedTuple):
    """Steps since the task began (int32)."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def scale_by_rewarmed_schedule(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    r"""Learning-rate schedule that starts again whenever `update` is told of a new task.

    .. math:: u' = - s(t) \, u, \qquad t = 0 \;\text{where}\; \texttt{new\_task}

    In place of `optax.scale_by_learning_rate`.

    Args:
      schedule: :math:`s`, of the step within the task (int32, from 0).

    Returns:
      A transformation with state `RewarmedScheduleState(count)` and the extra argument `new_task` of `update`, a
      boolean that may be traced: whether this step is the first of a task. Without it the schedule goes on.

    Raises:
      TypeError: `schedule` is no function.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import scale_by_rewarmed_schedule
      >>> tx = scale_by_rewarmed_schedule(optax.linear_schedule(1.0, 0.0, 4))
      >>> state, rates = tx.init(None), []
      >>> for new_task in (False, False, True, False):
      ...     updates, state = tx.update(jnp.ones(()), state, new_task=new_task)
      ...     rates.append(-float(updates))
      >>> rates
      [1.0, 0.75, 1.0, 0.75]

    References:
      Lyle et al., What can grokking teach us about learning under nonstationarity?, 2025,
      https://arxiv.org/abs/2507.20057
    """
    if not callable(schedule):
        raise TypeError(f"schedule is a function of the step, got {schedule!r}; a constant has nothing to restart.")

    def init(params: Any) -> RewarmedScheduleState:
        del params
        return RewarmedScheduleState(jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, new_task: Any = False, **extra: Any
    ) -> tuple[Any, RewarmedScheduleState]:
        del params, extra
        count = jnp.where(jnp.asarray(new_task, bool), 0, state.count)
        rate = at_step(schedule, count)
        scaled = jax.tree.map(lambda u: (-rate.astype(wide(u).dtype) * wide(u)).astype(u.dtype), updates)
        return scaled, RewarmedScheduleState(next_count(count))

    return optax.GradientTransformationExtraArgs(init, update)
