"""Norms and movements of parameter trees, by path."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax.optim._leaves import is_float, norm, wide
from normjax.optim._paths import check_same_paths, flatten
from normjax.precision import promote


def _float_leaves(tree: Any) -> dict[str, jax.Array]:
    found = {path: wide(leaf) for path, leaf in flatten(tree).leaves.items() if is_float(leaf)}
    if not found:
        raise ValueError("the tree has no floating-point leaf, so there is nothing to measure.")
    return found


def _pairs(params: Any, initial: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    now, then = _float_leaves(params), _float_leaves(initial)
    check_same_paths(then, now, "The initial values")
    return {path: (leaf, then[path].astype(leaf.dtype)) for path, leaf in now.items()}


def _length(x: jax.Array) -> jax.Array:
    return norm(x, tuple(range(x.ndim)))


def global_norm(tree: Any) -> jax.Array:
    r"""Euclidean norm of all floating-point leaves together, e.g. of a gradient.

    .. math:: \sqrt{\sum_l \lVert g_l \rVert^2}

    Unlike `optax.global_norm` it sums bfloat16 leaves in float32.

    Args:
      tree: Gradients, updates or parameters.

    Returns:
      A scalar: float32, or float64 where a leaf is.

    Raises:
      ValueError: If no leaf is floating point.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]], jnp.bfloat16)})
      Array(5., dtype=float32)
    """
    leaves = list(_float_leaves(tree).values())
    widest = promote(*[leaf.dtype for leaf in leaves])
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(widest))) for leaf in leaves), jnp.zeros((), widest)))


def weight_norms(params: Any) -> dict[str, jax.Array]:
    r"""Euclidean norm :math:`\lVert w \rVert` of every floating-point leaf.

    Args:
      params: The parameters.

    Returns:
      `{path: scalar}`, float32 or float64.

    Raises:
      ValueError: If no leaf is floating point.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.weight_norms({"w": jnp.array([3.0, 4.0])})
      {'w': Array(5., dtype=float32)}
    """
    return {path: _length(leaf) for path, leaf in _float_leaves(params).items()}


def weight_distances(params: Any, initial: Any) -> dict[str, jax.Array]:
    r"""Distance :math:`\lVert w - w_0 \rVert` of every floating-point leaf from where it began.

    Args:
      params: The parameters.
      initial: Their earlier values.

    Returns:
      `{path: scalar}`, float32 or float64.

    Raises:
      ValueError: If no leaf is floating point, or the trees differ.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.weight_distances({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 1.0])})
      {'w': Array(3., dtype=float32)}
    """
    return {path: _length(now - then) for path, (now, then) in _pairs(params, initial).items()}


def weight_rotations(params: Any, initial: Any) -> dict[str, jax.Array]:
    r"""Angle in radians by which every floating-point leaf has turned.

    .. math:: 2 \operatorname{atan2}(\lVert \hat w - \hat w_0 \rVert, \lVert \hat w + \hat w_0 \rVert), \qquad
        \hat w = w / \lVert w \rVert

    which, unlike the arc cosine, keeps small angles.

    Args:
      params: The parameters.
      initial: Their earlier values.

    Returns:
      `{path: scalar}`, float32 or float64, from 0 to pi; 0 where either is zero.

    Raises:
      ValueError: If no leaf is floating point, or the trees differ.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> turned = nj.diagnostics.weight_rotations({"w": jnp.array([0.0, 2.0])}, {"w": jnp.array([1.0, 0.0])})
      >>> round(float(turned["w"]), 4)
      1.5708
    """

    def angle(now: jax.Array, then: jax.Array) -> jax.Array:
        lengths = _length(now), _length(then)
        a, b = (x / jnp.where(n > 0, n, 1) for x, n in zip((now, then), lengths, strict=True))
        turned = 2 * jnp.arctan2(_length(a - b), _length(a + b))
        return jnp.where((lengths[0] > 0) & (lengths[1] > 0), turned, 0)

    return {path: angle(now, then) for path, (now, then) in _pairs(params, initial).items()}
