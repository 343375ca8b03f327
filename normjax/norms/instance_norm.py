r"""Instance normalization (Ulyanov, Vedaldi and Lempitsky 2016): each channel of each example by itself.

$$y_{n c} = \gamma_c \frac{x_{n c} - \mu_{n c}}{\sqrt{\sigma^2_{n c} + \epsilon}} + \beta_c$$

Statistics are taken over the spatial axes: every axis but the batch axis and the feature axes. No state, unless running
averages are tracked. Weights that feed it are scale-invariant channel by channel, up to epsilon.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import Moments
from normjax.norms._affine import Initializer, affine_inits, init_affine, standardized
from normjax.norms._axes import spatial_axes
from normjax.norms._running_statistics import normalize_with_statistics, update_averaged
from normjax.precision import TORCH, EpsilonMode, Precision, statistics_dtype
from normjax.reductions import AxisName, standardization
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
    y, _ = _normalize(
        x,
        scale,
        bias,
        feature_axes=feature_axes,
        batch_axes=batch_axes,
        epsilon=epsilon,
        epsilon_mode=epsilon_mode,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        precision=precision,
    )
    return y


def _normalize(
    x, scale, bias, *, feature_axes, batch_axes, mask, axis_name, precision, **options: Any
) -> tuple[jax.Array, Moments]:
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    axes = spatial_axes(x.ndim, feature_axes, batch_axes, axis_name)
    spec = standardization(x, axes, axis_name=axis_name, **options)
    return standardized(x, scale, bias, features, spec, mask, precision)


@method(
    "Instance normalization",
    "Ulyanov et al. 2016",
    "1607.08022",
    "vision",
    state=("(mean)", "(var)"),
    folds="affine",
    scale_invariance="per unit",
)
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
    track_running: bool = False,
    momentum: float = 0.9,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Instance normalization as a transform; parameters `{"scale", "bias"}`, no state unless it tracks.

    torch's layer is `instance_norm(feature_axes=1, epsilon=1e-5)`; its `track_running_stats=True` is `track_running`:
    training normalizes each instance by itself, evaluation by the running average of the instances' means and
    unbiased variances.

    Args:
      feature_axes, batch_axes, epsilon, epsilon_mode: As in `instance_normalize`.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.
      track_running: Whether to keep running statistics, state `{"mean", "var"}`, and to evaluate with them.
      momentum: Weight of their old value.
      axis_name, axis_index_groups, precision: As in `instance_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative or momentum is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.instance_norm(track_running=True).init(None, jnp.ones((2, 5, 5, 3)))
      >>> params["scale"].shape, sorted(state)
      ((3,), ['mean', 'var'])

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("momentum", momentum)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)

    def init(rng, x, **context):
        del context
        features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
        spatial_axes(x.ndim, feature_axes, batch_axes, axis_name)
        shape, dtype = tuple(x.shape[a] for a in features), statistics_dtype(x.dtype)
        state = {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)} if track_running else {}
        return init_affine(rng, shape, precision, *inits), state

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        own = params.get("scale"), params.get("bias")
        common = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "precision": precision}
        if track_running and not train:
            return normalize_with_statistics(x, state["mean"], state["var"], *own, **common), state
        mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        y, moments = _normalize(x, *own, batch_axes=batch_axes, epsilon_mode=epsilon_mode, **common, **mapped)
        if not track_running:
            return y, state
        return y, update_averaged(state, moments, _checks.canonical_axes(batch_axes, x.ndim, "batch_axes"), momentum)

    return NormTransform(init, apply)
