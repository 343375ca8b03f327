"""LiNeS: a task vector is scaled by a line over the depth."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks


def lines(
    task_vector: Any,
    *,
    depth: Callable[[str], int | None],
    layers: int,
    alpha: float,
    beta: float,
    outside: float | None = None,
) -> Any:
    r"""Scale a task vector linearly in the depth of its layers.

    $$\tau'_l = \Big(\alpha + \beta \frac{l}{L - 1}\Big)\, \tau_l$$

    Early layers, which serve all tasks, move less. For a single task the paper takes $\beta = 1 - \alpha$.

    Args:
      task_vector: Tree of differences to the pre-trained parameters. Leaves that are not floating point stay.
      depth: `depth(path)` is the block of a leaf, from 0, or `None` outside the blocks; `path` is like
        `"blocks/3/mlp/kernel"`. An explicit rule: a search for a number in the name would take a layer's index for
        the block's.
      layers: $L$, the number of blocks.
      alpha: Factor of the first block.
      beta: What the last block gets beyond it.
      outside: Factor of leaves outside the blocks; `None` for `alpha`, as the authors' code.

    Returns:
      A tree like `task_vector`.

    Raises:
      ValueError: If a depth is outside `[0, layers)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import lines
      >>> tau = {"embed": jnp.ones(1), "blocks": [jnp.ones(1), jnp.ones(1), jnp.ones(1)]}
      >>> block = lambda path: int(path.split("/")[1]) if path.startswith("blocks") else None
      >>> scaled = lines(tau, depth=block, layers=3, alpha=0.25, beta=0.5)
      >>> float(scaled["embed"][0]), [float(leaf[0]) for leaf in scaled["blocks"]]
      (0.25, [0.25, 0.5, 0.75])

    References:
      Wang et al. 2025, [LiNeS](https://arxiv.org/abs/2410.17146).
    """
    _checks.check_count("layers", layers, 1)

    def factor(path: str) -> float:
        block = depth(path)
        if block is None:
            return alpha if outside is None else outside
        if not 0 <= block < layers:
            raise ValueError(f"depth({path!r}) is {block}, outside of {layers} layers; depths count from 0.")
        return alpha + beta * (block / (layers - 1) if layers > 1 else 0.0)

    def scaled(keys: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return leaf * jnp.asarray(factor(path), leaf.dtype)

    return jax.tree_util.tree_map_with_path(scaled, task_vector)


def lines_alpha(task_vectors: Sequence[Any], merged: Any) -> jax.Array:
    r"""The factor of the first block when several tasks were merged.

    $$\alpha = \frac1N \frac{\lVert \sum_t \tau_t \rVert_1}{\lVert \tau_{merged} \rVert_1}$$

    Args:
      task_vectors: The N trees of differences.
      merged: Their merge (sum, TIES, consensus, ...), a tree of the same structure.

    Returns:
      A float32 number; 1 / N for the plain sum.

    Raises:
      ValueError: If there is no task vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import lines_alpha
      >>> taus = [{"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([1.0, 2.0])}]
      >>> float(lines_alpha(taus, {"w": jnp.array([1.0, 0.0])}))
      1.0

    References:
      Wang et al. 2025, [LiNeS](https://arxiv.org/abs/2410.17146).
    """
    if not task_vectors:
        raise ValueError("task_vectors is empty; the factor is that of a merge of at least one.")
    total = jax.tree.map(lambda *leaves: sum(leaf.astype(jnp.float32) for leaf in leaves), *task_vectors)
    return _absolute_sum(total) / _absolute_sum(merged) / len(task_vectors)


def _absolute_sum(tree: Any) -> jax.Array:
    sums = jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf.astype(jnp.float32))), tree)
    return jax.tree.reduce(jnp.add, sums)
