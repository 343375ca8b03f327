"""Cosines of weights with their gradients, over whole tensors, units and heads."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.optim._leaves import norm, wide
from normjax.optim._masks import float_matrices, select
from normjax.optim._paths import flatten, listing, match

Granularity = Literal["joint", "per head", "per unit"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


class Layout(NamedTuple):
    """How the axes of one tensor are read: leading ones of stacked layers; heads in the last axis or on their own."""

    stacked: int = 0
    heads: int | None = None
    head_axis: int | None = None

    def groups(self, shape: tuple[int, ...]) -> dict[Granularity, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The shape to view the tensor in and the axes to sum over, for each granularity that it has."""
        own = tuple(range(self.stacked, len(shape)))
        found: dict[Granularity, tuple[tuple[int, ...], tuple[int, ...]]] = {"joint": (shape, own)}
        if self.heads is not None:
            split = (*shape[:-1], self.heads, shape[-1] // self.heads)
            found["per head"] = (split, (*own[:-1], len(shape)))
        elif self.head_axis is not None:
            found["per head"] = (shape, tuple(axis for axis in own if axis != self.head_axis))
        if len(own) > 1:
            found["per unit"] = (shape, own[:-1])
        return found


def layouts(leaves: Mapping[str, Any], paths: Any, heads: Any, head_axes: Any, stacked: Any) -> dict[str, Layout]:
    """The layout of each leaf from options that are one value, a tree or a path-dict."""
    given = {name: match(value, paths, name) for name, value in _options(heads, head_axes, stacked).items()}
    both = [path for path in leaves if path in given.get("heads", {}) and path in given.get("head_axes", {})]
    if both:
        raise ValueError(f"{listing(both)} have both heads= in the last axis and head_axes= of their own; give one.")
    return {path: _layout(path, jnp.shape(leaf), given) for path, leaf in leaves.items()}


def _options(heads: Any, head_axes: Any, stacked: Any) -> dict[str, Any]:
    named = {"heads": heads, "head_axes": head_axes, "stacked": stacked}
    return {name: value for name, value in named.items() if value is not None}


def _layout(path: str, shape: tuple[int, ...], given: Mapping[str, Mapping[str, Any]]) -> Layout:
    stacked = given.get("stacked", {}).get(path, 0)
    _checks.check_count(f"stacked of {path!r}", stacked)
    if stacked >= len(shape):
        raise ValueError(f"stacked={stacked} leaves no axis of {path!r}, which has shape {shape}.")
    heads, axis = (given.get(name, {}).get(path) for name in ("heads", "head_axes"))
    if heads is not None:
        _checks.check_count(f"heads of {path!r}", heads, 1)
        if shape[-1] % heads:
            raise ValueError(f"heads={heads} do not divide the last axis of {path!r}, which has shape {shape}.")
    if axis is not None:
        (axis,) = _checks.canonical_axes(axis, len(shape), f"head_axes of {path!r}")
    return Layout(stacked, heads, axis)


def cosines(weight: jax.Array, gradient: jax.Array, layout: Layout) -> dict[Granularity, jax.Array]:
    """Cosines of one tensor with its gradient; NaN where either is zero."""
    w, g = wide(weight), wide(gradient)
    return {
        name: _cosine(w.reshape(view), g.reshape(view).astype(w.dtype), axes)
        for name, (view, axes) in layout.groups(w.shape).items()
    }


def _cosine(w: jax.Array, g: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    # Each at its own size first: the product of two small norms underflows long before they do.
    lengths = norm(w, axes), norm(g, axes)
    measured = (lengths[0] > 0) & (lengths[1] > 0)
    w, g = (a / jnp.expand_dims(jnp.where(n > 0, n, 1), axes) for a, n in zip((w, g), lengths, strict=True))
    return jnp.where(measured, jnp.sum(w * g, axis=axes), jnp.nan)


def sizes(shape: tuple[int, ...], layout: Layout) -> dict[Granularity, int]:
    """How many numbers one cosine of each granularity is about."""
    return {name: math.prod(view[a] for a in axes) for name, (view, axes) in layout.groups(shape).items()}


def gradient_cosines(
    params: Any,
    grads: Any,
    *,
    heads: Any = None,
    head_axes: Any = None,
    stacked: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
) -> dict[str, dict[Granularity, jax.Array]]:
    r"""Cosine of every weight tensor with its gradient, over the whole, each head and each unit.

    .. math:: \cos_s = \frac{\langle w_s, \partial L / \partial w_s \rangle}
        {\lVert w_s \rVert \, \lVert \partial L / \partial w_s \rVert}

    for every slice :math:`s`. By Euler's theorem it is zero wherever the loss does not depend on the scale of
    :math:`w_s`. For gradients that exist already; works under `jit`, in a training step, and on sharded arrays (a few
    sums for each tensor). `scale_invariance` judges the numbers.

    Args:
      params: the parameters.
      grads: their gradients, of the same structure.
      heads: number of heads in the last axis of a tensor: one value, a tree or a path-dict. Kernels of grouped queries
        have fewer: `{"query/kernel": 8, "key/kernel": 2}`.
      head_axes: for kernels that have an axis of heads, e.g. `(features, heads, size)`, that axis.
      stacked: number of leading axes that number layers, as `nn.scan` makes them; each layer is measured alone.
      mask: which leaves, as in `nap`; `None` is every floating-point leaf of two or more dimensions.

    Returns:
      `{path: {"joint": ..., "per head": ..., "per unit": ...}}`: float32 (float64 where the weights are), NaN where
      weights or gradient are zero. `"joint"` has the shape of the stacked axes, `()` without any; `"per unit"` (output
      units, on the last axis) and `"per head"` are absent where a tensor has none.

    Raises:
      ValueError: options that name no parameter or do not fit one; gradients of other parameters; a mask that selects
        nothing.
      TypeError: a selected leaf is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -1.0]])}
      >>> x = jnp.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.2]])
      >>> loss = lambda p: jnp.sum(nj.batch_normalize(x @ p["kernel"], epsilon=0.0)[0] ** 3)
      >>> found = nj.diagnostics.gradient_cosines(params, jax.grad(loss)(params))["kernel"]
      >>> bool(abs(found["joint"]) < 1e-5), found["per unit"].shape
      (True, (2,))

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, appendix A.5,
      https://arxiv.org/abs/2407.01800
    """
    flat, slopes = flatten(params), flatten(grads)
    if set(flat.leaves) != set(slopes.leaves):
        apart = set(flat.leaves) ^ set(slopes.leaves)
        raise ValueError(f"params and grads differ in {listing(apart)}; give the gradients of these parameters.")
    selected = select(mask, params, flat, float_matrices, "gradient_cosines")
    read = layouts(selected, flat.leaves, heads, head_axes, stacked)
    return {path: cosines(leaf, slopes.leaves[path], read[path]) for path, leaf in selected.items()}
