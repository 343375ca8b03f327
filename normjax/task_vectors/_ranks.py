"""Which matrices are low-rank, and how far they can be cut (WeLore)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.optim._leaves import wide

GRID = 0.005  # step of the search for a threshold


class LowRank(NamedTuple):
    """Two factors, `(in, rank)` and `(rank, out)`, whose product approximates a matrix."""

    left: jax.Array
    right: jax.Array


class RankPlan(NamedTuple):
    """What the spectrum of one matrix allows.

    Attributes:
      rank: number of singular values.
      kept: those at or above the threshold.
      low_rank: whether the share of the others exceeds `min_ratio`.
      dense_size: entries of the matrix.
      factored_size: entries of two factors of rank `kept`; may be more than `dense_size`.
      threshold: the one used, of normalized singular values.
    """

    rank: int
    kept: int
    low_rank: bool
    dense_size: int
    factored_size: int
    threshold: float


def _normalized(path: str, matrix: Any) -> np.ndarray:
    if jnp.ndim(matrix) != 2 or 0 in jnp.shape(matrix):
        raise ValueError(f"rank_plan takes matrices, got shape {jnp.shape(matrix)} for {path!r}; reshape first.")
    values = np.asarray(jnp.linalg.svd(wide(matrix), compute_uv=False))
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.ones_like(values)


def _search(spectra: Mapping[str, np.ndarray], target: float) -> float:
    """The first threshold of the grid that cuts at least the target fraction of all singular values."""
    values = np.concatenate(list(spectra.values()))
    grid = GRID * np.arange(round(1 / GRID) + 1)
    fractions = np.array([np.mean(values < threshold) for threshold in grid])
    reached = np.flatnonzero(fractions >= target)
    if not reached.size:
        raise ValueError(f"no threshold in [0, 1] cuts {target} of all singular values; at most {fractions.max():.3f}.")
    return float(grid[reached[0]])


def rank_plan(
    matrices: Mapping[str, Any],
    threshold: float | None = None,
    *,
    target: float | None = None,
    min_ratio: float = 0.0,
) -> dict[str, RankPlan]:
    r"""Ranks to cut matrices to, by one threshold on their normalized singular values (WeLore).

    .. math:: \hat s_i = \frac{s_i - s_{\min}}{s_{\max} - s_{\min}}, \qquad
        r = \left| \{ i : \hat s_i \ge \tau \} \right|

    The smallest singular value always counts as zero, so that any positive threshold cuts at least one. Normalized
    spectra do not depend on the norm of a matrix: the projection of whole weights changes no plan. A matrix whose
    singular values are all equal is not cut.

    Args:
      matrices: `{name: (in, out)}`, not traced; attention and feed-forward projections in the paper, never gains,
        embeddings or heads.
      threshold: :math:`\tau` in [0, 1].
      target: instead of a threshold, the fraction of all singular values to cut: the smallest threshold on a
        grid of 0.005 that does.
      min_ratio: a matrix is low-rank if a larger fraction of its singular values is cut; the authors' code has 0, the
        paper 0.5.

    Returns:
      `{name: RankPlan}`.

    Raises:
      ValueError: no matrices, or other arrays; both or none of `threshold` and `target`; values outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import rank_plan
      >>> plan = rank_plan({"w": jnp.diag(jnp.array([4.0, 3.0, 1.0, 1.0]))}, threshold=0.5)["w"]
      >>> plan.kept, plan.low_rank, plan.dense_size, plan.factored_size
      (2, True, 16, 16)

    References:
      Jaiswal et al., From GaLore to WeLore: how low-rank weights non-uniformly emerge from low-rank gradients, 2024,
      https://arxiv.org/abs/2407.11239
    """
    if not matrices or (threshold is None) == (target is None):
        raise ValueError("rank_plan takes matrices and either threshold= or target=.")
    for name, value in {"threshold": threshold, "target": target, "min_ratio": min_ratio}.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} lies in [0, 1], got {value!r}.")
    spectra = {path: _normalized(path, matrix) for path, matrix in matrices.items()}
    cut = _search(spectra, target) if threshold is None and target is not None else float(threshold or 0)

    def plan(path: str, values: np.ndarray) -> RankPlan:
        rows, columns = jnp.shape(matrices[path])
        kept = int(np.sum(values >= cut))
        low = (values.size - kept) / values.size > min_ratio
        return RankPlan(values.size, kept, low, rows * columns, kept * (rows + columns), cut)

    return {path: plan(path, values) for path, values in spectra.items()}


def low_rank(matrix: jax.Array, rank: int) -> LowRank:
    r"""The best approximation of a matrix by two factors, :math:`U_r \sqrt{S_r}` and :math:`\sqrt{S_r} V_r^\top`.

    Args:
      matrix: `(in, out)`.
      rank: :math:`r`, static.

    Returns:
      `LowRank(left, right)` in at least float32; cast to bfloat16 as the authors do with `jax.tree.map`.

    Raises:
      ValueError: no matrix, or a rank outside [0, min(in, out)].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import low_rank
      >>> factors = low_rank(jnp.array([[4.0, 0.0], [0.0, 1.0]]), 1)
      >>> [[round(x, 3) + 0.0 for x in row] for row in (factors.left @ factors.right).tolist()]
      [[4.0, 0.0], [0.0, 0.0]]

    References:
      Jaiswal et al., From GaLore to WeLore: how low-rank weights non-uniformly emerge from low-rank gradients, 2024,
      https://arxiv.org/abs/2407.11239
    """
    if jnp.ndim(matrix) != 2 or not 0 <= rank <= min(matrix.shape):
        raise ValueError(f"expected a matrix and a rank of at most its smaller side, got {matrix.shape}, {rank!r}.")
    u, s, vt = jnp.linalg.svd(wide(matrix), full_matrices=False)
    root = jnp.sqrt(s[:rank])
    return LowRank(u[:, :rank] * root, root[:, None] * vt[:rank])
