"""Norm and addition in XLA: the row norms' definition around a sum."""

import jax
import jax.numpy as jnp

from pallas_kernels._axes import wide
from pallas_kernels.peri_norm.formula import NormAdd
from pallas_kernels.row_norm import reference


def forward(settings: NormAdd, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
    """`(h,)` or `(h, y)`, and what the backward pass needs: x, for two norms h, and shift and rstd of each norm."""
    x, residual, *scales = inputs
    (normalized,), first = reference.forward(settings.row, (wide(x), scales[0], None), save)
    # XLA may drop a cast to a narrower dtype and back, but never this: what is normalized is what is returned.
    info = jnp.finfo(residual.dtype)
    total = jax.lax.reduce_precision(normalized + wide(residual), info.nexp, info.nmant)
    h = total.astype(residual.dtype)
    if not settings.twice:
        return (h,), (x, *first[1:]) if save else ()
    (y,), second = reference.forward(settings.row, (total, scales[1], None), save)
    return (h, y.astype(x.dtype)), (x, h, *first[1:], *second[1:]) if save else ()


def backward(settings: NormAdd, parameters: tuple, saved: tuple, cotangents: tuple) -> tuple:
    """Gradients of the inputs; those of the parameters are float32 sums over the local rows."""
    if not settings.twice:
        dx, dscale, _ = reference.backward(settings.row, (*parameters, None), saved, cotangents)
        return dx, cotangents[0], dscale
    (x, h, *statistics), (scale_out, scale_in), (dh, dy) = saved, parameters, cotangents
    inner, dscale_in, _ = reference.backward(settings.row, (scale_in, None), (wide(h), *statistics[2:]), (dy,))
    stream = inner + wide(dh)
    dx, dscale_out, _ = reference.backward(settings.row, (scale_out, None), (x, *statistics[:2]), (stream,))
    return dx, stream.astype(h.dtype), dscale_out, dscale_in
