"""WeLore: which matrices have low rank, by one threshold on their normalized singular values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

# The authors search the threshold in steps of this size.
_STEP = 0.005


class RankPlan(NamedTuple):
    """What is kept of a matrix.

    Attributes:
      rank: Number of its singular values.
      kept: Rank that is kept.
      low_rank: Whether it counts as a low-rank component, to be factorized and tuned; the others stay as they are.
      dense: Number of its entries.
      factored: Number of entries of both factors, which may be more than that.
    """

    rank: int
    kept: int
    low_rank: bool
    dense: int
    factored: int


def rank_plan(
    weights: Mapping[str, Any],
    threshold: float | None = None,
    *,
    target: float | None = None,
    min_ratio: float = 0.0,
) -> dict[str, RankPlan]:
    r"""Choose a rank for every matrix by one threshold (WeLore).

    $$\hat s_i = \frac{s_i - s_{min}}{s_{max} - s_{min}}, \qquad r = \#\{i : \hat s_i \ge t\}$$

    The normalized spectrum does not change with the scale of a matrix, so that projecting its norm changes no plan. The
    smallest value is always 0: a positive threshold takes at least one rank of everything.

    Args:
      weights: Matrices by name.
      threshold: $t$ in [0, 1].
      target: In the place of a threshold: the share of all ranks that is to go, for which the smallest threshold on a
        grid of 0.005 is taken.
      min_ratio: A matrix is a low-rank component if more than this share of its ranks goes (0.5 in the paper).

    Returns:
      A plan by name.

    Raises:
      ValueError: If not exactly one of threshold and target is given, or a weight is not a matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import rank_plan
      >>> rank_plan({"w": jnp.diag(jnp.array([10.0, 9.0, 1.0, 0.0]))}, 0.5)["w"].kept
      2

    References:
      Jaiswal et al. 2025, [From Low Rank Gradient Subspace Stabilization to Low-Rank
      Weights](https://arxiv.org/abs/2407.11239).
    """
    if (threshold is None) == (target is None):
        raise ValueError(f"give either threshold or target, got threshold={threshold} and target={target}.")
    spectra = {name: _normalized(name, weight) for name, weight in weights.items()}
    chosen = _threshold_for(target, spectra) if threshold is None else threshold
    if not 0 <= chosen <= 1:
        raise ValueError(f"threshold must be in [0, 1], the range of normalized singular values; got {chosen}.")
    return {name: _plan(weights[name], s, chosen, min_ratio) for name, s in spectra.items()}


def _normalized(name: str, weight: Any) -> np.ndarray:
    if np.ndim(weight) != 2:
        raise ValueError(f"weight {name!r} has shape {np.shape(weight)}; ranks are those of matrices.")
    values = np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False)
    spread = values[0] - values[-1]
    # A matrix with one singular value, many times, has nothing to lose but all.
    return (values - values[-1]) / spread if spread > 0 else np.ones_like(values)


def _threshold_for(target: float | None, spectra: Mapping[str, np.ndarray]) -> float:
    assert target is not None
    if not 0 <= target < 1:
        raise ValueError(f"target must be in [0, 1), the share of ranks to go; got {target}.")
    values = np.concatenate(list(spectra.values()))
    grid = np.arange(0, 1 + _STEP, _STEP)
    return float(next(t for t in grid if np.mean(values < t) >= target or t >= 1))


def _plan(weight: Any, spectrum: np.ndarray, threshold: float, min_ratio: float) -> RankPlan:
    rows, columns = np.shape(weight)
    rank, kept = len(spectrum), int(np.sum(spectrum >= threshold))
    return RankPlan(rank, kept, (rank - kept) / rank > min_ratio, rows * columns, kept * (rows + columns))


def low_rank_factors(weight: Any, rank: int, dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    r"""The two factors of a matrix's best approximation of a rank: $U\sqrt{S_r}$ and $\sqrt{S_r}V^\top$.

    Args:
      weight: `(rows, columns)`.
      rank: Of the approximation.
      dtype: Of the factors; `None` for the weight's.

    Returns:
      `(rows, rank)` and `(rank, columns)`.

    Raises:
      ValueError: If the rank is not between 1 and that of the matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import low_rank_factors
      >>> left, right = low_rank_factors(jnp.diag(jnp.array([4.0, 1.0])), 1)
      >>> jnp.abs(left @ right).round(3).tolist()
      [[4.0, 0.0], [0.0, 0.0]]

    References:
      Jaiswal et al. 2025, [From Low Rank Gradient Subspace Stabilization to Low-Rank
      Weights](https://arxiv.org/abs/2407.11239).
    """
    if not 1 <= rank <= min(np.shape(weight)):
        raise ValueError(f"rank={rank} is not between 1 and {min(np.shape(weight))}, of a weight {np.shape(weight)}.")
    u, s, v = np.linalg.svd(np.asarray(weight, np.float64), full_matrices=False)
    root = np.sqrt(s[:rank])
    kind = weight.dtype if dtype is None else dtype
    return jax.numpy.asarray(u[:, :rank] * root, kind), jax.numpy.asarray(root[:, None] * v[:rank], kind)
