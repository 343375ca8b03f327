"""The quantized RMS norm in XLA: the definition."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels._axes import wide
from pallas_kernels.quantized_norm import formula
from pallas_kernels.quantized_norm.formula import Quantized
from pallas_kernels.row_norm.formula import weight


def forward(settings: Quantized, x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Values like x, and row scales with axes of size one; nothing is reshaped."""
    x, w = wide(x), weight(scale, settings.scale_offset)
    v = x if w is None else x * jnp.expand_dims(w, [a for a in range(x.ndim) if a not in settings.axes]).astype(x.dtype)
    square = jnp.sum(x * x, axis=settings.axes, keepdims=True)
    largest = jnp.max(jnp.abs(v), axis=settings.axes, keepdims=True)
    n = math.prod(x.shape[a] for a in settings.axes)
    row_scale, factor = formula.scales(settings, n, square, largest)
    return formula.values(settings, v, factor), row_scale.astype(jnp.float32)
