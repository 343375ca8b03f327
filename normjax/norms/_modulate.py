"""Scales and shifts that depend on a condition: how they are checked, placed on the features and applied."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import TORCH, promote, scale_shift_cast, statistics_dtype


def modulate(
    normalized: jax.Array, scale: jax.Array | None, shift: jax.Array | None, *, unit_offset: bool = True
) -> jax.Array:
    r"""Modulates a normalized array: $y = (1 + s) \odot \hat x + t$, or $s \odot \hat x + t$ without the unit.

    Args:
      normalized: $\hat x$, a floating array of any shape.
      scale: $s$, of the same rank and broadcastable to it: a vector for each sample, a map, a grid; `None` for none.
      shift: $t$, likewise; `None` for 0.
      unit_offset: Whether 1 is added to the scale (adaLN, SPADE, RN), so that a condition of zero changes nothing.

    Returns:
      The modulated array in the shape and dtype of `normalized`, computed in at least float32 and rounded once.

    Raises:
      TypeError: If `normalized` is not floating.
      ValueError: If scale or shift do not broadcast at the same rank.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.modulate(jnp.array([[-1.0, 1.0]]), jnp.array([[1.0]]), jnp.array([[0.5]])))
      [[-1.5  2.5]]

    References:
      Perez et al. 2017, [FiLM](https://arxiv.org/abs/1709.07871); Peebles and Xie 2022,
      [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """
    _checks.check_input(normalized)
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and not _broadcasts(value.shape, normalized.shape):
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} does not broadcast to {tuple(normalized.shape)} at the same "
                f"rank; a vector for each sample of (batch, length, features) needs {name}[:, None, :]."
            )
    wide = normalized.astype(statistics_dtype(normalized.dtype))
    return scale_shift_cast(wide, scale, shift, normalized.dtype, TORCH, float(unit_offset))


def along_features(vectors: jax.Array, x: jax.Array, feature_axis: int, name: str) -> jax.Array:
    """Places vectors (*leading, features) on the axes of `x`, whose other axes begin with `leading`.

    One vector for all, one for each sample or one for each token are the same call.
    """
    (axis,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    others = tuple(x.shape[a] for a in _checks.other_axes((axis,), x.ndim))
    leading = tuple(vectors.shape[:-1])
    if not _broadcasts(leading, others[: len(leading)]):
        raise ValueError(
            f"{name} has leading shape {leading}, which does not match the first axes {others} of the input "
            f"{tuple(x.shape)} without feature axis {axis}; give one {name} for each sample, each token, or for all."
        )
    placed = jnp.expand_dims(vectors, tuple(range(len(leading), len(others))))
    return jnp.moveaxis(placed, -1, axis)


def at_least(value: Any, x: jax.Array) -> jax.Array:
    """A condition in the dtype of its promotion with `x`, so that float64 inputs are modulated in float64."""
    value = jnp.asarray(value)
    return value.astype(promote(value.dtype, x.dtype))


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, name: str) -> jax.Array:
    """The linear layer of a modulation: summed in at least float32, rounded to the dtype of input and kernel."""
    if kernel.ndim != 2 or x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} does not fit a kernel of shape {tuple(kernel.shape)}; expected "
            f"{kernel.shape[0]} features on the last axis of {name}, as init saw them."
        )
    dtype = promote(x.dtype, kernel.dtype)
    wide = statistics_dtype(dtype)
    y = jnp.matmul(x.astype(wide), kernel.astype(wide))
    if bias is not None:
        y = y + jnp.expand_dims(bias.astype(wide), tuple(range(y.ndim - 1)))
    return y.astype(dtype)


def linear_init(rng: jax.Array | None, inputs: int, outputs: int, dtype: Any, name: str) -> dict[str, jax.Array]:
    """A kernel and a bias drawn as torch draws a linear layer or a 1x1 convolution: uniform in ±1/sqrt(inputs)."""
    if rng is None:
        raise ValueError(f"{name} starts from random weights, got rng=None; pass a key, e.g. jax.random.key(0).")
    bound = inputs**-0.5
    shapes = {"kernel": (inputs, outputs), "bias": (outputs,)}
    keys = jax.random.split(rng)
    return {
        entry: jax.random.uniform(key, shape, dtype, -bound, bound)
        for key, (entry, shape) in zip(keys, shapes.items(), strict=True)
    }


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(size in (1, whole) for size, whole in zip(shape, to, strict=True))
