"""Task vectors, and their scaling by depth (LiNeS)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.optim._leaves import is_float, wide
from normjax.optim._paths import flatten, listing


def task_vector(params: Any, base: Any) -> Any:
    r"""The task vector of fine-tuned parameters, :math:`\tau = \theta - \theta_0`.

    Args:
      params: fine-tuned parameters.
      base: the parameters they started from, of the same structure and shapes.

    Returns:
      The difference in the dtype of `params`; zeros for leaves that are not floating point.

    Raises:
      ValueError: the two trees have other leaves or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import task_vector
      >>> task_vector({"w": jnp.array([3.0])}, {"w": jnp.array([1.0])})
      {'w': Array([2.], dtype=float32)}

    References:
      Ilharco et al., Editing models with task arithmetic, 2022, https://arxiv.org/abs/2212.04089
    """
    flat = same_leaves([params, base], "parameters")
    return flatten(params).replace(
        {
            path: leaf - flat[1][path].astype(leaf.dtype) if is_float(leaf) else jnp.zeros_like(leaf)
            for path, leaf in flat[0].items()
        }
    )


def same_leaves(trees: Sequence[Any], what: str) -> list[dict[str, jax.Array]]:
    """The leaves of every tree by path; raise unless paths and shapes are those of the first."""
    flats = [flatten(tree).leaves for tree in trees]
    shapes = [{path: jnp.shape(leaf) for path, leaf in flat.items()} for flat in flats]
    for index, other in enumerate(shapes[1:], 1):
        if other != shapes[0]:
            wrong = [p for p in {**shapes[0], **other} if shapes[0].get(p) != other.get(p)]
            raise ValueError(f"{what} number {index} differs from the first in {listing(wrong)}: paths or shapes.")
    return flats


def lines(
    tau: Any,
    depth: Callable[[str], int | None],
    num_blocks: int,
    *,
    alpha: Any,
    beta: Any,
    outside: Any = None,
) -> Any:
    r"""Scale a task vector linearly with depth (LiNeS): shallow layers stay near the base, deep ones keep the task.

    .. math:: \tau'_l = \left(\alpha + \beta \, \frac{l}{L - 1}\right) \tau_l, \qquad l = 0, \ldots, L - 1

    For one task :math:`\beta = 1 - \alpha`; for merged ones :math:`\alpha` is `lines_alpha` and :math:`\beta` is chosen
    on validation data. Gains of norms take the factor of their block. If weights are projected, re-project
    them after adding the result to the base.

    Args:
      tau: task vector, a tree of arrays.
      depth: `depth(path)`, the block of a leaf from 0, or `None` outside of the blocks; of `"blocks_3/mlp/kernel"`, 3.
      num_blocks: :math:`L`.
      alpha: :math:`\alpha`, the factor of the first block.
      beta: :math:`\beta`, what the last block has more.
      outside: factor of leaves outside of the blocks, embeddings and heads; `None` is :math:`\alpha`, as the
        authors' code has it.

    Returns:
      The scaled tree, same dtypes; leaves that are not floating point stay.

    Raises:
      ValueError: `num_blocks < 1`; a depth outside of [0, L); no leaf in any block.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import lines
      >>> tau = {"block_0": jnp.ones(1), "block_1": jnp.ones(1), "head": jnp.ones(1)}
      >>> block = {"block_0": 0, "block_1": 1}.get
      >>> {name: float(x[0]) for name, x in lines(tau, block, 2, alpha=0.25, beta=0.75).items()}
      {'block_0': 0.25, 'block_1': 1.0, 'head': 0.25}

    References:
      Wang et al., LiNeS: post-training layer scaling prevents forgetting and enhances model merging, 2024,
      https://arxiv.org/abs/2410.17146
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks counts the blocks and is at least 1, got {num_blocks!r}.")
    flat = flatten(tau)
    depths = {path: depth(path) for path in flat.leaves}
    wrong = {path: d for path, d in depths.items() if d is not None and not 0 <= d < num_blocks}
    if wrong or all(d is None for d in depths.values()):
        raise ValueError(
            f"depth numbers blocks from 0 to {num_blocks - 1} and is None outside of them; got {wrong or 'None'} for "
            f"{listing(wrong or depths)}."
        )

    def factor(block: int | None) -> Any:
        if block is None:
            return alpha if outside is None else outside
        return alpha + beta * (block / max(num_blocks - 1, 1))

    scaled = {p: (wide(x) * factor(depths[p])).astype(x.dtype) for p, x in flat.leaves.items() if is_float(x)}
    return flat.replace(scaled)


def lines_alpha(task_vectors: Sequence[Any], merged: Any, *, ord: int = 1) -> jax.Array:
    r"""The factor of the first block for merged task vectors.

    .. math:: \alpha = \frac{1}{N} \, \frac{\lVert \sum_t \tau_t \rVert}{\lVert \tau \rVert}

    Args:
      task_vectors: the :math:`N` task vectors.
      merged: :math:`\tau`, what they were merged to; their plain sum gives :math:`1 / N`.
      ord: 1 for the sum of magnitudes, as the authors' code has it; 2 for the Euclidean norm.

    Returns:
      A float32 scalar (float64 where the task vectors are).

    Raises:
      ValueError: no task vectors; trees that differ; an `ord` other than 1 and 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import lines_alpha
      >>> tasks = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 3.0])}]
      >>> float(lines_alpha(tasks, {"w": jnp.array([1.0, 3.0])}))
      0.5

    References:
      Wang et al., LiNeS: post-training layer scaling prevents forgetting and enhances model merging, 2024,
      https://arxiv.org/abs/2410.17146
    """
    if ord not in (1, 2) or not task_vectors:
        raise ValueError(f"lines_alpha takes task vectors and ord 1 or 2, got {len(task_vectors)} and {ord}.")
    *tasks, whole = same_leaves([*task_vectors, merged], "task vector")
    paths = [path for path, leaf in whole.items() if is_float(leaf)]

    def size(leaves: Sequence[jax.Array]) -> jax.Array:
        total = sum((jnp.sum(jnp.abs(x) ** ord) for x in leaves[1:]), jnp.sum(jnp.abs(leaves[0]) ** ord))
        return total if ord == 1 else jnp.sqrt(total)

    summed = [jnp.sum(jnp.stack([wide(task[path]) for task in tasks]), axis=0) for path in paths]
    return size(summed) / size([wide(whole[path]) for path in paths]) / len(tasks)
