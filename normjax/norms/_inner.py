"""The norm inside another one, passed as a value."""

from typing import Any

import jax

from normjax.precision import Precision, statistics_dtype
from normjax.transform import NormTransform


def check_transform(method: str, norm: Any) -> None:
    """Raises `TypeError` unless `norm` is a transform."""
    if not isinstance(norm, NormTransform):
        raise TypeError(f"{method} takes a NormTransform, got {norm!r}; a factory must be called, e.g. layer_norm().")


def apply_inner(
    norm: NormTransform,
    params: Any,
    state: Any,
    x: jax.Array,
    train: bool,
    mask: Any,
    context: Any,
    precision: Precision,
) -> tuple[jax.Array, Any]:
    """Applies the norm inside in the statistics dtype: a narrow input is rounded once, after the modulation."""
    return norm.apply(params, state, x.astype(statistics_dtype(x.dtype, precision)), train=train, mask=mask, **context)
