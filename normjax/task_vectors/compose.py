"""Sums of task vectors with learned coefficients: one per block of parameters, or one per group of its entries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks


def compose(params: Any, task_vectors: Sequence[Any], coefficients: Any, groups: Any = None) -> Any:
    r"""Add task vectors to pre-trained parameters, each block with coefficients of its own (aTLAS).

    $$\theta^{(j)} = \theta_0^{(j)} + \sum_i \lambda_i^{(j)} \tau_i^{(j)}$$

    Differentiable in the coefficients: train them with any optax optimizer, from zero. With `groups` every entry of a
    block takes the coefficient of its group: `random_groups` for aTLAS x K, `chunk_groups` for Expert Merging.

    Args:
      params: $\theta_0$, a tree of arrays.
      task_vectors: N trees of the same structure.
      coefficients: A tree of the same structure: `(N,)`, or `(N, K)` where the block has groups. A leaf `None` leaves
        its block as it is (Expert Merging learns nothing for norms and biases).
      groups: A tree of the same structure of integer arrays in `[0, K)` shaped like the parameters, with `None` where
        a block has none; or `None`.

    Returns:
      A tree like `params`, in its dtypes.

    Raises:
      ValueError: If trees or shapes do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import compose
      >>> params, taus = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
      >>> compose(params, taus, {"w": jnp.array([0.5, 2.0])})["w"].tolist()
      [0.5, 2.0]

    References:
      Zhang et al. 2024, [Knowledge Composition using Task Vectors](https://arxiv.org/abs/2407.02880).
      Zhang et al. 2025, [Expert Merging](https://arxiv.org/abs/2509.25712).
    """
    leaves, structure = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]

    def aligned(tree: Any, what: str) -> list[Any]:
        found = jax.tree.flatten(tree, is_leaf=lambda node: node is None)
        if found[1] != structure:
            raise ValueError(f"{what} has the structure {found[1]}; expected that of params, {structure}.")
        return found[0]

    taus = [aligned(tau, f"task_vectors[{i}]") for i, tau in enumerate(task_vectors)]
    learned = aligned(coefficients, "coefficients")
    parts = [None] * len(leaves) if groups is None else aligned(groups, "groups")
    new = [
        leaf if c is None else leaf + _weighted(name, [tau[j] for tau in taus], c, part).astype(leaf.dtype)
        for j, (name, leaf, c, part) in enumerate(zip(names, leaves, learned, parts, strict=True))
    ]
    return structure.unflatten(new)


def _weighted(name: str, taus: list[jax.Array], coefficients: jax.Array, group: jax.Array | None) -> jax.Array:
    expected = 1 if group is None else 2
    if coefficients.ndim != expected or coefficients.shape[0] != len(taus):
        wanted = f"({len(taus)},)" if group is None else f"({len(taus)}, number of groups)"
        raise ValueError(f"coefficients of {name} have shape {coefficients.shape}; expected {wanted}.")
    if group is None:
        return sum(
            (c.astype(tau.dtype) * tau for c, tau in zip(coefficients, taus, strict=True)), jnp.zeros_like(taus[0])
        )
    if group.shape != taus[0].shape:
        raise ValueError(f"groups of {name} have shape {group.shape}; expected that of the parameter, {taus[0].shape}.")
    each = [jnp.take(c, group).astype(tau.dtype) * tau for c, tau in zip(coefficients, taus, strict=True)]
    return sum(each[1:], each[0])


def random_groups(key: jax.Array, shape: Sequence[int], count: int) -> jax.Array:
    """Assign every entry of a block to one of `count` groups at random (aTLAS x K).

    Args:
      key: Random key.
      shape: Of the block. Vectors have groups too; the authors' code leaves them out without a word.
      count: Number of groups.

    Returns:
      int32 numbers in `[0, count)` of that shape.

    Example:
      >>> import jax
      >>> from normjax.task_vectors import random_groups
      >>> random_groups(jax.random.key(0), (2, 3), 4).shape
      (2, 3)

    References:
      Zhang et al. 2024, [Knowledge Composition using Task Vectors](https://arxiv.org/abs/2407.02880).
    """
    _checks.check_count("count", count, 1)
    return jax.random.randint(key, tuple(shape), 0, count, jnp.int32)


def chunk_groups(shape: Sequence[int], count: int) -> jax.Array:
    """Cut a block, flattened, into `count` runs of equal length (Expert Merging).

    A run has `ceil(n / count)` entries, as torch cuts; so there may be fewer of them than `count`, and the coefficients
    of the rest do nothing.

    Args:
      shape: Of the block.
      count: Number of runs.

    Returns:
      int32 numbers in `[0, count)` of that shape.

    Example:
      >>> from normjax.task_vectors import chunk_groups
      >>> chunk_groups((2, 3), 4).tolist()
      [[0, 0, 1], [1, 2, 2]]

    References:
      Zhang et al. 2025, [Expert Merging](https://arxiv.org/abs/2509.25712).
    """
    _checks.check_count("count", count, 1)
    size = math.prod(shape)
    length = max(1, -(-size // count))
    return (jnp.arange(size, dtype=jnp.int32) // length).reshape(tuple(shape))


def importance_chunks(
    coefficients: Mapping[str, jax.Array],
    task_vectors: Sequence[Mapping[str, jax.Array]],
    *,
    budget: int,
    kappa: float = 1.0,
) -> dict[str, int]:
    r"""How many chunks each block gets of a budget (Expert Merging++).

    $$I_l \propto \sum_k |\alpha_k^l| \,\overline{|\tau_k^l|}\, n_l, \qquad
      m_l = \Big\lfloor B \frac{I_l^\kappa}{\sum_j I_j^\kappa} \Big\rfloor$$

    Args:
      coefficients: `(N,)` learned coefficients by block.
      task_vectors: N dictionaries of the blocks' task vectors.
      budget: $B$, the number of chunks of all blocks together.
      kappa: Exponent; 0 gives every block the same.

    Returns:
      Chunks by block; 0 where a block keeps one fixed coefficient.

    Raises:
      ValueError: If blocks and task vectors do not fit together, or all importances are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import importance_chunks
      >>> tau = {"a": jnp.ones(3), "b": jnp.ones(1)}
      >>> importance_chunks({"a": jnp.ones(1), "b": jnp.ones(1)}, [tau], budget=8)
      {'a': 6, 'b': 2}

    References:
      Zhang et al. 2025, [Expert Merging](https://arxiv.org/abs/2509.25712).
    """
    _checks.check_count("budget", budget, 1)
    for i, tau in enumerate(task_vectors):
        if tau.keys() != coefficients.keys():
            raise ValueError(f"task_vectors[{i}] has {sorted(tau)}; expected the blocks {sorted(coefficients)}.")
    importance = {
        # The mean times the size is the sum.
        name: float(sum(abs(c) * jnp.sum(jnp.abs(tau[name])) for c, tau in zip(alpha, task_vectors, strict=True)))
        for name, alpha in coefficients.items()
    }
    total = sum(importance.values())
    if not total > 0:
        raise ValueError(
            "all importances are zero: coefficients or task vectors vanish, so no block is to be preferred."
        )
    powers = {name: (value / total) ** kappa for name, value in importance.items()}
    whole = sum(powers.values())
    # A share that is a whole number must not lose one to rounding.
    return {name: math.floor(budget * power / whole + 1e-6) for name, power in powers.items()}
