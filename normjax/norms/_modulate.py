"""Modulation of a normalized value by a scale and a shift that a condition has made."""

import jax
import jax.numpy as jnp

from normjax.precision import TORCH, promote, scale_shift_cast


def modulate(
    normalized: jax.Array, scale: jax.Array | None, shift: jax.Array | None, *, unit_offset: bool = True
) -> jax.Array:
    r"""$y = (1 + \gamma) \odot \hat x + \beta$, or $\gamma \odot \hat x + \beta$ without the unit offset.

    Args:
      normalized: $\hat x$, floating.
      scale: $\gamma$, broadcastable to it at equal rank: a vector per example, a map, or one entry per coordinate;
        `None` leaves it out.
      shift: $\beta$, likewise.
      unit_offset: Whether the scale is stored around zero.

    Returns:
      The modulated value in the dtype of `normalized`, rounded to it once: the product is formed in at least float32.
    """
    dtype = normalized.dtype
    wide = normalized.astype(promote(dtype, jnp.float32))
    return scale_shift_cast(wide, scale, shift, wide.dtype, TORCH, float(unit_offset)).astype(dtype)
