"""Ranks of a feature matrix, all of them functions of its singular values."""

import jax
import jax.numpy as jnp

from normjax.diagnostics.units import _rows


def _singular(features: jax.Array) -> jax.Array:
    """Singular values in decreasing order."""
    return jnp.linalg.svd(_rows(features), compute_uv=False)


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"expected {name} between 0 and 1, got {name}={value!r}.")


def feature_rank(features: jax.Array, tolerance: float = 0.01) -> jax.Array:
    r"""Numerical rank: singular values above a fraction of the largest, :math:`|\{i : \sigma_i > t\,\sigma_1\}|`.

    Args:
      features: `(..., d)`; all axes but the last count as inputs.
      tolerance: :math:`t`.

    Returns:
      An int32 scalar; 0 for a matrix of zeros.

    Raises:
      TypeError: If the features are not floating point.
      ValueError: If they have no axis of inputs, no elements, or the tolerance is outside (0, 1).

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.feature_rank(jnp.diag(jnp.array([1.0, 0.5, 0.001])))
      Array(2, dtype=int32)

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, appendix C.2,
      https://arxiv.org/abs/2407.01800
    """
    _check_fraction("tolerance", tolerance)
    singular = _singular(features)
    return jnp.sum(singular > tolerance * singular[0], dtype=jnp.int32)


def srank(features: jax.Array, delta: float = 0.01) -> jax.Array:
    r"""How many singular values hold all but :math:`\delta` of their sum.

    .. math:: \min \Bigl\{ k : \sum_{i \le k} \sigma_i \ge (1 - \delta) \sum_i \sigma_i \Bigr\}

    Args:
      features: As in `feature_rank`.
      delta: :math:`\delta`.

    Returns:
      An int32 scalar; 0 for a matrix of zeros.

    Raises:
      TypeError: As in `feature_rank`.
      ValueError: As in `feature_rank`, for `delta`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.srank(jnp.diag(jnp.array([1.0, 0.5, 0.001])))
      Array(2, dtype=int32)

    References:
      Kumar et al., Implicit under-parameterization inhibits data-efficient deep reinforcement learning, 2021,
      https://arxiv.org/abs/2010.14498
    """
    _check_fraction("delta", delta)
    sums = jnp.cumsum(_singular(features))
    needed = 1 + jnp.sum(sums < (1 - delta) * sums[-1], dtype=jnp.int32)
    return jnp.where(sums[-1] > 0, needed, 0)


def stable_rank(features: jax.Array) -> jax.Array:
    r"""Stable rank, which small singular values hardly change.

    .. math:: \lVert F \rVert_F^2 / \lVert F \rVert_2^2

    Args:
      features: As in `feature_rank`.

    Returns:
      A scalar of at least float32, from 1 to `min(n, d)`; 0 for a matrix of zeros.

    Raises:
      TypeError: As in `feature_rank`.
      ValueError: As in `feature_rank`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.stable_rank(jnp.diag(jnp.array([2.0, 1.0])))
      Array(1.25, dtype=float32)
    """
    singular = _singular(features)
    largest = singular[0]
    return jnp.sum(jnp.square(singular / jnp.where(largest > 0, largest, 1)))


def effective_rank(features: jax.Array) -> jax.Array:
    r"""Effective rank: the exponential of the entropy of the singular values.

    .. math:: \exp\Bigl(-\sum_i p_i \log p_i\Bigr), \qquad p_i = \sigma_i / \sum_j \sigma_j

    Args:
      features: As in `feature_rank`.

    Returns:
      A scalar of at least float32, from 1 to `min(n, d)`; 0 for a matrix of zeros.

    Raises:
      TypeError: As in `feature_rank`.
      ValueError: As in `feature_rank`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> round(float(nj.diagnostics.effective_rank(jnp.eye(4))), 4)
      4.0

    References:
      Roy, Vetterli, The effective rank: a measure of effective dimensionality, 2007.
    """
    singular = _singular(features)
    total = jnp.sum(singular)
    p = singular / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)
