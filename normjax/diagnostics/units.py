"""What single units do over a probe set: dead, dormant, linearised, active."""

import math

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.optim._leaves import wide
from normjax.optim._units import dormancy


def _rows(activations: jax.Array) -> jax.Array:
    """`(..., units)` as `(inputs, units)`, at least float32; for images every position is an input."""
    _checks.check_input(activations, tuple(range(activations.ndim)))
    if activations.ndim < 2:
        raise ValueError(f"activations are (..., units) with at least one axis of inputs, got {activations.shape}.")
    return wide(activations.reshape(-1, activations.shape[-1]))


def dead_units(activations: jax.Array) -> jax.Array:
    r"""Fraction of units that are zero for every input: no gradient reaches them.

    .. math:: \frac{1}{d} \, \bigl| \{ i : a_i(x) = 0 \ \text{for all } x \} \bigr|

    Args:
      activations: `(..., units)` after a ReLU; all axes but the last, positions of an image too, count as inputs.

    Returns:
      A float32 scalar in [0, 1].

    Raises:
      TypeError: If the activations are not floating point.
      ValueError: If they have no axis of inputs, or no elements.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.dead_units(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
      Array(0.5, dtype=float32)

    References:
      Lyle et al., Understanding plasticity in neural networks, 2023, https://arxiv.org/abs/2303.01486
    """
    return jnp.mean(jnp.all(_rows(activations) == 0, axis=0), dtype=jnp.float32)


def linearised_units(activations: jax.Array) -> jax.Array:
    r"""Fraction of units on which a ReLU acts linearly: zero for every input, or for none.

    .. math:: \frac{1}{d} \, \bigl| \{ i : a_i(x) = 0 \ \text{for all } x \} \cup
        \{ i : a_i(x) \ne 0 \ \text{for all } x \} \bigr|

    Args:
      activations: As in `dead_units`.

    Returns:
      A float32 scalar in [0, 1].

    Raises:
      TypeError: As in `dead_units`.
      ValueError: As in `dead_units`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.linearised_units(jnp.array([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0, 1.0]]))
      Array(0.5, dtype=float32)

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, appendix C.2,
      https://arxiv.org/abs/2407.01800
    """
    zero = _rows(activations) == 0
    return jnp.mean(jnp.all(zero, axis=0) | ~jnp.any(zero, axis=0), dtype=jnp.float32)


def dormant_scores(activations: jax.Array) -> jax.Array:
    r"""Each unit's mean absolute activation over that of the layer.

    .. math:: s_i = \frac{\mathbb{E}_x |a_i(x)|}{\frac{1}{d} \sum_k \mathbb{E}_x |a_k(x)|}

    Args:
      activations: `(..., units)`; all axes but the last count as inputs.

    Returns:
      `(units,)`, at least float32; 0 for a layer without any activation.

    Raises:
      TypeError: As in `dead_units`.
      ValueError: As in `dead_units`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.dormant_scores(jnp.array([[0.0, 1.0], [0.0, 3.0]]))
      Array([0., 2.], dtype=float32)

    References:
      Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023,
      https://arxiv.org/abs/2302.12902
    """
    return dormancy(jnp.mean(jnp.abs(_rows(activations)), axis=0))


def dormant_units(activations: jax.Array, threshold: float = 0.025) -> jax.Array:
    r"""Fraction of units with a dormant score of at most a threshold, :math:`s_i \le \tau`.

    Args:
      activations: As in `dormant_scores`.
      threshold: :math:`\tau`; 0 counts dead units.

    Returns:
      A float32 scalar in [0, 1].

    Raises:
      TypeError: As in `dead_units`.
      ValueError: As in `dead_units`, and for a negative threshold.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.dormant_units(jnp.array([[0.01, 1.0], [0.01, 3.0]]))
      Array(0.5, dtype=float32)

    References:
      Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023,
      https://arxiv.org/abs/2302.12902
    """
    if not threshold >= 0:
        raise ValueError(f"threshold bounds a score that is never negative, got {threshold!r}.")
    return jnp.mean(dormant_scores(activations) <= threshold, dtype=jnp.float32)


def active_fraction(activations: jax.Array, *, low: float = 0.0, high: float = math.inf) -> jax.Array:
    r"""Fraction of pairs of unit and input on which the nonlinearity passes a gradient.

    .. math:: \mathbb{E}_{x, i} \, [\, l < a_i(x) < h \,]

    Args:
      activations: `(..., units)`.
      low: :math:`l`; -0.99 for tanh, 0.01 for the sigmoid.
      high: :math:`h`; 0.99 for both.

    Returns:
      A float32 scalar in [0, 1].

    Raises:
      TypeError: As in `dead_units`.
      ValueError: As in `dead_units`, and for an empty range.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.active_fraction(jnp.array([[0.0, 1.0], [2.0, 3.0]]))
      Array(0.75, dtype=float32)

    References:
      Ma et al., Revisiting plasticity in visual reinforcement learning, 2023, https://arxiv.org/abs/2310.07418
    """
    if not low < high:
        raise ValueError(f"no activation lies between low={low!r} and high={high!r}.")
    rows = _rows(activations)
    return jnp.mean((rows > low) & (rows < high), dtype=jnp.float32)
