"""Pieces that group-wise whitening and colouring shares with its penalties."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import compute_moments
from normjax.norms._conv import with_bias
from normjax.precision import Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare


def coloring_basis(coloring: jax.Array) -> jax.Array:
    """Divides the columns of each matrix by their lengths; a zero column stays zero."""
    return coloring * inverse_root(jnp.sum(coloring**2, axis=-2, keepdims=True), 0.0)


def centre(
    x: jax.Array, feature_axis: int, mask: jax.Array | None, axis_name: AxisName, precision: Precision
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` in the statistics dtype, `x` less its mean with the features last, and the count of the mean."""
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    values, valid = prepare(x, mask, statistics_dtype(x.dtype, precision))
    axes = _checks.other_axes((feature,), x.ndim)
    moments = compute_moments(values, axes, mask=valid, axis_name=axis_name)
    return values, jnp.moveaxis(values - moments.mean, feature, -1), moments.count


def perceptron(x: jax.Array, layers: Mapping[str, Any]) -> jax.Array:
    """Layers `"0"`, `"1"`, ... with a leaky ReLU (0.01) between them."""
    for i in range(len(layers)):
        x = x if i == 0 else jax.nn.leaky_relu(x)
        layer = layers[str(i)]
        x = with_bias(x @ layer["kernel"].astype(x.dtype), layer)
    return x


def distance_to_identity(matrices: jax.Array) -> jax.Array:
    """The mean of |M - I| over all entries of all matrices."""
    identity = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
    return jnp.mean(jnp.abs(matrices - jnp.broadcast_to(identity, matrices.shape)))
