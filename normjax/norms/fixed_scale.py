"""A fixed reweighting of features, as in the analysis of projection heads (Xue et al. 2024)."""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import promote


def fixed_scale(x: jax.Array, weights: jax.Array, *, feature_axis: int = -1) -> jax.Array:
    r"""Multiplies features by constants: $y = D x$ with a fixed diagonal $D$, in training only.

    A head that is discarded after training and only reweights the encoder's features. A third party's reproduction has
    $D = \mathrm{diag}(1, 1/\kappa, \dots, 1/\kappa^{p-1})$ with $\kappa > 1$; that form and the values of $\kappa$ are
    not confirmed by the paper, so the weights are an argument. They get no gradient.

    Args:
      x: Floating array.
      weights: The diagonal, of shape `(features,)`.
      feature_axis: Where the features are.

    Returns:
      The reweighted array, in the shape and dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If there is not one weight for each feature.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.fixed_scale(jnp.ones((1, 3)), 2.0 ** -jnp.arange(3.0)))
      [[1.   0.5  0.25]]

    References:
      Xue et al. 2024, [Investigating the Benefits of Projection Head for Representation
      Learning](https://arxiv.org/abs/2403.11391).
    """
    _checks.check_input(x)
    axes = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    _checks.check_parameter("weights", weights, x.shape, (x.shape[axes[0]],))
    weights = _checks.broadcast_to_features(jax.lax.stop_gradient(jnp.asarray(weights)), axes, x.ndim)
    wide = promote(x.dtype, weights.dtype)
    return (x.astype(wide) * weights.astype(wide)).astype(x.dtype)
