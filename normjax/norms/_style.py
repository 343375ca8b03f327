"""Statistics of a content and of a style, shared by adaptive instance normalization and its content-aware form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.moments import Moments, compute_moments, standardize, variance
from normjax.norms._context import check_condition
from normjax.precision import EpsilonMode, Precision, inverse_root, statistics_dtype
from normjax.reductions import prepare, standardization


class Unbiased(NamedTuple):
    """Mean and unbiased variance, reduced axes kept with size 1."""

    mean: jax.Array
    var: jax.Array

    def deviation(self, epsilon: float = 0.0) -> jax.Array:
        """The root of the variance plus epsilon; its derivative is 0, not infinite, where that is 0."""
        return (self.var + jnp.asarray(epsilon, self.var.dtype)) * inverse_root(self.var, epsilon)


def content_and_style(
    content: jax.Array,
    style: jax.Array,
    feature_axis: int,
    epsilon: float,
    epsilon_mode: EpsilonMode,
    mask: jax.Array | None,
    style_mask: jax.Array | None,
    precision: Precision,
    affine: Callable[[Unbiased], tuple[jax.Array, jax.Array]] | None = None,
) -> tuple[jax.Array, jax.Array, Unbiased, Unbiased]:
    """Returns the content in the statistics dtype, normalized by its unbiased variance, and both sets of statistics.

    `affine` turns the statistics of the style into a scale and a bias that the normalization takes with it.
    """
    (feature,) = _checks.canonical_axes(feature_axis, content.ndim, "feature_axis")
    check_condition("style", style, content.shape, {0: content.shape[0], feature: content.shape[feature]})
    axes = _checks.other_axes((0, feature), content.ndim)
    if feature == 0 or not axes:
        raise ValueError(f"feature_axis={feature_axis} leaves no spatial axis of an input of shape {content.shape}.")
    dtype = statistics_dtype(content.dtype, precision)
    spec = standardization(content, axes, epsilon=epsilon, epsilon_mode=epsilon_mode, ddof=1)
    values, valid = prepare(content, mask, dtype)
    _checks.check_input(style)
    target = _unbiased(compute_moments(style.astype(dtype), axes, mask=style_mask))
    scale, bias = (None, None) if affine is None else affine(target)
    normalized, moments = standardize(values, valid, spec, scale, bias)
    return values, normalized, _unbiased(moments), target


def _unbiased(moments: Moments) -> Unbiased:
    return Unbiased(moments.mean, variance(moments, ddof=1))
