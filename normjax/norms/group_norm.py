r"""Group normalization (Wu and He 2018): each example's channels in groups, each by its own mean and variance.

$$y_{n c} = \gamma_c \frac{x_{n c} - \mu_{n g(c)}}{\sqrt{\sigma^2_{n g(c)} + \epsilon}} + \beta_c$$

One group is layer normalization over all axes, as many groups as channels is instance normalization. No state.
Weights that feed it are scale-invariant group by group, up to epsilon.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import standardize
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine, standardized
from normjax.norms._groups import check_groups, split_groups
from normjax.precision import TORCH, EpsilonMode, Precision, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform, stateless


def group_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axis: int = -1,
    axis: _checks.Axes | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    per_group: bool = False,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Group normalization of an array: $y = \gamma (x-\mu_g)/\sqrt{\sigma_g^2+\epsilon} + \beta$.

    Args:
      x: Floating array, e.g. `(batch, height, width, channels)`.
      scale: $\gamma$, `(channels,)` or, with `per_group`, `(groups,)`; `None` for 1.
      bias: $\beta$, likewise; `None` for 0.
      num_groups: Number of groups; exactly one of this and `group_size` is given, the other is `None`.
      group_size: Channels per group.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      axis: Axes over which the statistics are taken besides the channels of a group; `None` means every axis but the
        first.
      epsilon: Non-negative number added to the variance. 1e-6 as in Flax; torch has 1e-5.
      epsilon_mode: Where epsilon sits.
      per_group: Whether scale and bias are one per group, as in Batch-Channel Normalization.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the reduced axes are sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the groups do not divide the channels, or axes, mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> print(nj.group_normalize(x, num_groups=2).round(3))
      [[-1.  1. -1.  1.]]

    References:
      Wu and He 2018, [Group Normalization](https://arxiv.org/abs/1803.08494).
    """
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    reduced = tuple(range(1, x.ndim)) if axis is None else _checks.canonical_axes(axis, x.ndim)
    groups = check_groups(x, feature, num_groups, group_size)
    size = x.shape[feature] // groups
    options = {"epsilon": epsilon, "epsilon_mode": epsilon_mode}
    options |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    space = tuple(a for a in reduced if a != feature)
    if per_group:
        for name, parameter in {"scale": scale, "bias": bias}.items():
            _checks.check_parameter(name, parameter, x.shape, (x.shape[feature] // size,))
        scale, bias = (None if p is None else jnp.repeat(p, size) for p in (scale, bias))
    if space:
        spec = standardization(x, space, neighbours=(feature, size), **options)
        return standardized(x, scale, bias, (feature,), spec, mask, precision)[0]
    if mask is not None:
        _checks.check_mask(mask, x.shape)
    grouped, mask = split_groups(x, mask, feature, num_groups=groups)
    spec = standardization(grouped, feature + 1, **options)
    normalized, _ = standardize(*prepare(grouped, mask, statistics_dtype(x.dtype, precision)), spec)
    return affine(normalized.reshape(x.shape), x, scale, bias, (feature,), precision)


@method("Group normalization", "Wu and He 2018", "1803.08494", "vision", folds="affine", scale_invariance="per group")
def group_norm(
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axis: int = -1,
    axis: _checks.Axes | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    per_group: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Group normalization as a transform; parameters `{"scale", "bias"}`, no state.

    Args:
      num_groups: Number of groups; `None` if `group_size` is given.
      group_size: Channels per group; `None` if `num_groups` is given.
      feature_axis, axis, epsilon, epsilon_mode, per_group: As in `group_normalize`.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.
      axis_name, axis_index_groups, precision: As in `group_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative, or `init` meets channels that the groups do not divide.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.group_norm(num_groups=None, group_size=4)
      >>> params, state = norm.init(None, jnp.ones((2, 5, 5, 8)))
      >>> params["bias"].shape, state
      ((8,), {})

    References:
      Wu and He 2018, [Group Normalization](https://arxiv.org/abs/1803.08494).
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)
    options: dict[str, Any] = {"num_groups": num_groups, "group_size": group_size, "feature_axis": feature_axis}
    options |= {"axis": axis, "epsilon": epsilon, "epsilon_mode": epsilon_mode, "per_group": per_group}
    options |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups, "precision": precision}

    def init_params(rng, x, **context):
        del context
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        groups = check_groups(x, feature, num_groups, group_size)
        return init_affine(rng, (groups if per_group else x.shape[feature],), precision, *inits)

    def fn(params, x, *, mask, **context):
        del context
        return group_normalize(x, params.get("scale"), params.get("bias"), mask=mask, **options)

    return stateless(fn, init_params)
