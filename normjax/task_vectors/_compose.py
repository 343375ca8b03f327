"""Compositions of task vectors with a coefficient per task and block (aTLAS), and per chunk (Expert Merging)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.optim._leaves import is_float, wide
from normjax.optim._paths import flatten, listing, match
from normjax.task_vectors._lines import same_leaves


def _combine(path: str, base: jax.Array, taus: Sequence[jax.Array], lam: jax.Array, group: Any) -> jax.Array:
    lam = jnp.asarray(lam)
    if lam.ndim not in (1, 2) or lam.shape[0] != len(taus) or (lam.ndim == 2) != (group is not None):
        raise ValueError(
            f"coefficients for {path!r} have shape {lam.shape}; expected {(len(taus),)}, one per task vector, or "
            f"{(len(taus), 'K')} for a weight whose entries groups divides into K; groups name it: {group is not None}."
        )
    result = wide(base)
    for weight, tau in zip(lam.astype(result.dtype), taus, strict=True):
        # A group of an entry without a coefficient would be clamped to the last one: the fill makes it visible.
        factor = weight if group is None else weight.at[group].get(mode="fill", fill_value=jnp.nan)
        result = result + factor * wide(tau).astype(result.dtype)
    return result.astype(base.dtype)


def compose(base: Any, task_vectors: Sequence[Any], coefficients: Any, *, groups: Any = None) -> Any:
    r"""Parameters composed of a base and task vectors, with one coefficient per task and block (aTLAS).

    .. math:: \theta^{(j)} = \theta_0^{(j)} + \sum_t \lambda_t^{(j)} \tau_t^{(j)}, \qquad
        \theta_i = \theta_{0, i} + \sum_t \lambda_{t, g(i)} \tau_{t, i}

    A block :math:`j` is a leaf: a weight, a bias, a gain. With `groups`, each entry :math:`i` belongs to a group
    :math:`g(i)` of its leaf, with a coefficient each: random ones (`random_groups`, partitioned aTLAS) or contiguous
    ones (`chunk_groups`, Expert Merging). Differentiable in the coefficients. Leaves of any number of dimensions are
    grouped; the authors' code leaves all but matrices at the base without a word.

    Args:
      base: :math:`\theta_0`, a tree of arrays.
      task_vectors: :math:`\tau_t`, trees of the same structure and shapes.
      coefficients: :math:`\lambda`: one array for all leaves, a (prefix) tree or a path-dict, of shape `(tasks,)`, or
        `(tasks, K)` for leaves with groups. Leaves it does not name stay at the base.
      groups: integer arrays in the shapes of the leaves, from 0 to K - 1, as a tree or path-dict; `None`: none.

    Returns:
      The composed tree in the dtypes of `base`; leaves that are not floating point stay.

    Raises:
      ValueError: no task vectors; trees that differ; coefficients or groups that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import compose
      >>> base = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
      >>> tau = {"w": jnp.array([1.0, 2.0]), "b": jnp.ones(1)}
      >>> compose(base, [tau], {"w": jnp.array([[10.0, 0.5]])}, groups={"w": jnp.array([0, 1])})["w"].tolist()
      [10.0, 1.0]

    References:
      Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, 2024,
      https://arxiv.org/abs/2407.02880
    """
    if not task_vectors:
        raise ValueError("compose takes at least one task vector, got none.")
    start, *taus = same_leaves([base, *task_vectors], "task vector")
    lams = match(coefficients, start, "coefficients")
    grouped = {} if groups is None else match(groups, start, "groups")
    wrong = [path for path, group in grouped.items() if jnp.shape(group) != jnp.shape(start[path])]
    if wrong:
        raise ValueError(f"groups have to have the shapes of their leaves; those of {listing(wrong)} do not.")
    composed = {
        path: _combine(path, start[path], [tau[path] for tau in taus], lam, grouped.get(path))
        for path, lam in lams.items()
        if is_float(start[path])
    }
    return flatten(base).replace(composed)


def random_groups(key: jax.Array, params: Any, count: int) -> dict[str, jax.Array]:
    """Random division of the entries of every leaf into groups, for partitioned aTLAS.

    Args:
      key: JAX random key.
      params: parameters, or anything with their structure and shapes.
      count: number of groups per leaf, K.

    Returns:
      `{path: integers in [0, K)}` for `groups=` of `compose`, each entry's drawn by itself.

    Raises:
      ValueError: `count < 1`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from normjax.task_vectors import random_groups
      >>> random_groups(jax.random.key(0), {"w": jnp.ones((2, 3))}, 4)["w"].shape
      (2, 3)

    References:
      Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, 2024,
      https://arxiv.org/abs/2407.02880
    """
    if count < 1:
        raise ValueError(f"count is the number of groups and at least 1, got {count!r}.")
    leaves = flatten(params).leaves
    keys = jax.random.split(key, len(leaves))
    return {p: jax.random.randint(k, jnp.shape(x), 0, count) for k, (p, x) in zip(keys, leaves.items(), strict=True)}


def chunk_groups(params: Any, counts: Any) -> dict[str, jax.Array]:
    r"""Division of the entries of leaves, in memory order, into contiguous chunks (Expert Merging).

    .. math:: g(i) = \lfloor i / \lceil n / K \rceil \rfloor

    As `torch.chunk` cuts: fewer than :math:`K` chunks may come out, and the last coefficients then have no entry.
    The order is that of the array here; a kernel `(in, out)` has other chunks than its transpose in torch.

    Args:
      params: parameters, or anything with their structure and shapes.
      counts: :math:`K`: one number for all leaves, a (prefix) tree or a path-dict, as `importance_chunks` gives it.

    Returns:
      `{path: integers}` for `groups=` of `compose`, of the leaves with at least one chunk.

    Raises:
      ValueError: a negative count, or counts that name no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import chunk_groups
      >>> chunk_groups({"w": jnp.ones((1, 5))}, 3)["w"].tolist()
      [[0, 0, 1, 1, 2]]

    References:
      Expert Merging, 2025, https://arxiv.org/abs/2509.25712
    """
    leaves = flatten(params).leaves
    numbers = match(counts, leaves, "counts")
    if any(number < 0 for number in numbers.values()):
        raise ValueError(f"counts of chunks must not be negative, got {numbers}.")
    groups = {}
    for path, number in numbers.items():
        size = math.prod(jnp.shape(leaves[path]))
        if number and size:
            groups[path] = (jnp.arange(size) // -(-size // number)).reshape(jnp.shape(leaves[path]))
    return groups


def importance_chunks(
    alpha: Mapping[str, Any], task_vectors: Sequence[Any], budget: float, *, exponent: float = 1.0
) -> dict[str, int]:
    r"""How many chunks each leaf gets, by its importance (Expert Merging++).

    .. math:: I_l = \sum_t |\alpha_t^l| \, \overline{|\tau_t^l|} \, n_l, \qquad
        m_l = \left\lfloor B \, I_l^\kappa / \textstyle\sum_j I_j^\kappa \right\rfloor

    The authors' code does not contain this step; it takes :math:`m_l` as given.

    Args:
      alpha: learned coefficients of whole leaves, `{path: (tasks,)}`; only these leaves get chunks.
      task_vectors: :math:`\tau_t`, trees of one structure.
      budget: :math:`B`, the number of chunks to give away.
      exponent: :math:`\kappa`; 0 gives all leaves the same.

    Returns:
      `{path: m}`; 0 where a leaf keeps its initial coefficient. For `chunk_groups`.

    Raises:
      ValueError: no task vectors; a negative budget; `alpha` that names no leaf or does not fit; no importance at all.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.task_vectors import importance_chunks
      >>> tau = {"a": jnp.full(2, 3.0), "b": jnp.full(2, 1.0)}
      >>> importance_chunks({"a": jnp.array([0.5]), "b": jnp.array([0.5])}, [tau], budget=8)
      {'a': 6, 'b': 2}

    References:
      Expert Merging, 2025, https://arxiv.org/abs/2509.25712
    """
    if not task_vectors or not budget >= 0:
        raise ValueError(f"expected task vectors and a budget >= 0, got {len(task_vectors)} and {budget!r}.")
    taus = same_leaves(task_vectors, "task vector")
    lams = match(alpha, taus[0], "alpha")
    wrong = {path: jnp.shape(lam) for path, lam in lams.items() if jnp.shape(lam) != (len(taus),)}
    if wrong:
        raise ValueError(f"alpha is one coefficient per task vector, {(len(taus),)}, got {wrong}.")
    importance = {
        # The mean magnitude times the number of entries is their sum.
        path: sum(abs(float(lam[t])) * float(jnp.sum(jnp.abs(wide(tau[path])))) for t, tau in enumerate(taus))
        for path, lam in lams.items()
    }
    total = sum(value**exponent for value in importance.values())
    if not total > 0:
        raise ValueError(f"coefficients times task vectors vanish on all of {listing(lams)}; nothing to divide.")
    return {path: math.floor(budget * value**exponent / total) for path, value in importance.items()}
