"""NormGrad: where in an image a layer would learn, from the gradients of a virtual layer at each position."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.optim._leaves import wide

VirtualLayer = Literal["scaling", "bias", "conv1x1", "conv3x3", "conv3x3_depthwise"]
Aggregation = Literal["norm", "filter_norm", "sum", "max"]


class AffineGradients(NamedTuple):
    """Gradients of scale and bias of an affine layer before they are summed over positions, shaped like its input."""

    scale: jax.Array
    bias: jax.Array


def per_position_affine_grads(x: jax.Array, cotangent: jax.Array) -> AffineGradients:
    r"""What each position adds to the gradients of a scale and a bias: :math:`x_u \odot g_u` and :math:`g_u`.

    Summed over all axes but the features they are the gradients of a norm's own scale and bias, where `x` is the
    normalized input.

    Args:
      x: `(..., features)`, the input of the affine map.
      cotangent: :math:`g`, the gradient at its output, of the same shape.

    Returns:
      `AffineGradients(scale, bias)`.

    Raises:
      TypeError: If either is not floating point.
      ValueError: If the shapes differ.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.per_position_affine_grads(jnp.array([[2.0]]), jnp.array([[3.0]])).scale
      Array([[6.]], dtype=float32)

    References:
      Rebuffi et al., There and back again: revisiting backpropagation saliency methods, 2020,
      https://arxiv.org/abs/2004.02866
    """
    _check_pair(x, cotangent)
    return AffineGradients(x * cotangent.astype(x.dtype), cotangent)


def normgrad_map(
    x: jax.Array,
    cotangent: jax.Array,
    *,
    layer: VirtualLayer = "conv1x1",
    aggregation: Aggregation = "norm",
) -> jax.Array:
    r"""A map of what each position of an image adds to the gradient of a virtual identity layer.

    With :math:`P_u` the gradient at position :math:`u` of the layer's weights,

    .. math:: P_u = x_u \odot g_u \;\text{(scaling)}, \quad g_u \;\text{(bias)}, \quad
        x_{N(u)} g_u^\top \;\text{(convolutions, of a neighbourhood N)},

    the map is :math:`\lVert P_u \rVert` (`"norm"`), that of its positive part (`"filter_norm"`), its sum or its
    maximum. Outer products are aggregated without being formed. The layer's output is its input: `cotangent` is the
    gradient of the class score in `x` itself.

    Args:
      x: `(batch, height, width, channels)`, an activation.
      cotangent: :math:`g`, the gradient of the score at that activation, of the same shape.
      layer: The virtual layer; 3x3 convolutions are padded with zeros.
      aggregation: Over the entries of :math:`P_u`.

    Returns:
      `(batch, height, width)`, at least float32.

    Raises:
      TypeError: If either array is not floating point.
      ValueError: If the shapes differ or are no images, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, g = jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 4.0)
      >>> round(float(nj.diagnostics.normgrad_map(x, g)[0, 0, 0]), 4)  # |x| |g|
      24.0

    References:
      Rebuffi et al., There and back again: revisiting backpropagation saliency methods, 2020,
      https://arxiv.org/abs/2004.02866
    """
    _check_pair(x, cotangent)
    if x.ndim != 4:
        raise ValueError(f"expected images (batch, height, width, channels), got x of shape {x.shape}.")
    _checks.check_choice("layer", layer, VirtualLayer)
    _checks.check_choice("aggregation", aggregation, Aggregation)
    x, g = wide(x), wide(cotangent)
    if layer in ("conv1x1", "conv3x3"):
        patch = x if layer == "conv1x1" else _neighbours(x).reshape(*x.shape[:3], -1)
        return _OUTER[aggregation](patch, g)
    entries = {
        "scaling": lambda: x * g,
        "bias": lambda: g,
        "conv3x3_depthwise": lambda: (_neighbours(x) * g[..., None, :]).reshape(*x.shape[:3], -1),
    }[layer]()
    return _ENTRIES[aggregation](entries)


def saliency(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    r"""Maps resized bilinearly and brought to [0, 1], :math:`(m - \min m) / (\max m - \min m)` for each image.

    Saliencies of several layers are multiplied.

    Args:
      maps: `(batch, height, width)`.
      size: Height and width of the result.

    Returns:
      `(batch, *size)`; 0 where a map is constant.

    Raises:
      ValueError: If the maps are not three-dimensional.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.saliency(jnp.array([[[1.0, 3.0]]]), (1, 2))
      Array([[[0., 1.]]], dtype=float32)

    References:
      Rebuffi et al., There and back again: revisiting backpropagation saliency methods, 2020,
      https://arxiv.org/abs/2004.02866
    """
    if maps.ndim != 3:
        raise ValueError(f"expected maps (batch, height, width), got shape {maps.shape}.")
    resized = jax.image.resize(maps, (maps.shape[0], *size), "bilinear", antialias=False)
    shifted = resized - jnp.min(resized, axis=(1, 2), keepdims=True)
    largest = jnp.max(shifted, axis=(1, 2), keepdims=True)
    return shifted / jnp.where(largest > 0, largest, 1)


def _check_pair(x: jax.Array, cotangent: jax.Array) -> None:
    _checks.check_input(x)
    _checks.check_input(cotangent)
    if x.shape != cotangent.shape:
        raise ValueError(f"x of shape {x.shape} and its cotangent of shape {cotangent.shape} differ.")


def _neighbours(x: jax.Array) -> jax.Array:
    """The 3x3 neighbourhood of each position, `(batch, height, width, 9, channels)`, zero outside the image."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=3)


def _norm(a: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(a), axis=-1))


def _signs(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.maximum(a, 0), jnp.maximum(-a, 0)


def _positive_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    (a_up, a_down), (b_up, b_down) = _signs(a), _signs(b)
    return jnp.hypot(_norm(a_up) * _norm(b_up), _norm(a_down) * _norm(b_down))


def _largest_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    # A product is largest at an end of each factor's range.
    ends = [[f(v, axis=-1) for f in (jnp.min, jnp.max)] for v in (a, b)]
    return jnp.max(jnp.stack([p * q for p in ends[0] for q in ends[1]]), axis=0)


_ENTRIES = {
    "norm": _norm,
    "filter_norm": lambda p: _norm(_signs(p)[0]),
    "sum": lambda p: jnp.sum(p, axis=-1),
    "max": lambda p: jnp.max(p, axis=-1),
}
_OUTER = {
    "norm": lambda a, b: _norm(a) * _norm(b),
    "filter_norm": _positive_outer,
    "sum": lambda a, b: jnp.sum(a, axis=-1) * jnp.sum(b, axis=-1),
    "max": _largest_outer,
}
