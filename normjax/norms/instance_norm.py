r"""Instance normalization (Ulyanov, Vedaldi and Lempitsky 2016): each channel of each example by itself.

$$y_{n c} = \gamma_c \frac{x_{n c} - \mu_{n c}}{\sqrt{\sigma^2_{n c} + \epsilon}} + \beta_c$$

Statistics are taken over the spatial axes: every axis but the batch axis and the feature axes. No state. Weights that
feed it are scale-invariant channel by channel, up to epsilon.
"""

import jax

from normjax import _checks
from normjax.moments import AxisName
from normjax.norms._affine import Initializer
from normjax.norms.layer_norm import layer_norm, layer_normalize
from normjax.precision import TORCH, EpsilonMode, Precision
from normjax.transform import NormTransform


def instance_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    batch_axes: _checks.Axes = 0,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Instance normalization of an array: $y = \gamma (x-\mu_{nc})/\sqrt{\sigma_{nc}^2+\epsilon} + \beta$.

    Args:
      x: Floating array with at least one spatial axis, e.g. `(batch, height, width, channels)`.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      feature_axes: Channel axes; 1 for torch's `(N, C, H, W)`.
      batch_axes: Axes of separate examples.
      epsilon: Non-negative number added to the variance. 1e-6 as in Flax; torch has 1e-5.
      epsilon_mode: Where epsilon sits.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the spatial axes are sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If no spatial axis is left, or axes, mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> print(nj.instance_normalize(x).round(3))
      [[[-1. -1.]
        [ 1.  1.]]]

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """
    return layer_normalize(
        x,
        scale,
        bias,
        axis=spatial_axes(x.ndim, feature_axes, batch_axes),
        feature_axes=feature_axes,
        epsilon=epsilon,
        epsilon_mode=epsilon_mode,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        precision=precision,
    )


def spatial_axes(ndim: int, feature_axes: _checks.Axes, batch_axes: _checks.Axes) -> tuple[int, ...]:
    """Returns the axes of a rank-`ndim` array that are neither features nor batch."""
    features = _checks.canonical_axes(feature_axes, ndim, "feature_axes")
    batch = _checks.canonical_axes(batch_axes, ndim, "batch_axes")
    spatial = _checks.other_axes((*features, *batch), ndim)
    if set(features) & set(batch) or not spatial:
        raise ValueError(
            f"feature_axes={feature_axes!r} and batch_axes={batch_axes!r} must be disjoint and leave at least one "
            f"axis of an input of rank {ndim} to normalize over."
        )
    return spatial


def instance_norm(
    *,
    feature_axes: _checks.Axes = -1,
    batch_axes: _checks.Axes = 0,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Instance normalization as a transform; parameters `{"scale", "bias"}`, no state.

    Args:
      feature_axes: Channel axes, on which scale and bias live.
      batch_axes: Axes of separate examples.
      epsilon: Non-negative number added to the variance.
      epsilon_mode: Where epsilon sits.
      use_scale: Whether there is a scale.
      use_bias: Whether there is a bias.
      scale_init: Initializer of the scale; ones by default.
      bias_init: Initializer of the bias; zeros by default.
      axis_name: Mapped axis over which the spatial axes are sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.instance_norm().init(None, jnp.ones((2, 5, 5, 3)))
      >>> params["scale"].shape
      (3,)

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """

    def layer(ndim: int) -> NormTransform:
        return layer_norm(
            axis=spatial_axes(ndim, feature_axes, batch_axes),
            feature_axes=feature_axes,
            epsilon=epsilon,
            epsilon_mode=epsilon_mode,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            precision=precision,
        )

    _checks.check_epsilon(epsilon)

    def init(rng, x, **context):
        return layer(x.ndim).init(rng, x, **context)

    def apply(params, state, x, *, train, mask=None, **context):
        return layer(x.ndim).apply(params, state, x, train=train, mask=mask, **context)

    return NormTransform(init, apply)
