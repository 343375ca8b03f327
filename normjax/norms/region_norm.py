r"""Region normalization (Yu et al. 2020): the hole of an image and its surroundings, each by its own statistics.

$$\hat x = \frac{x - \mu_r}{\sqrt{\sigma_r^2 + \epsilon N / S_r}},\qquad
y = (1 + \gamma_r)\,\hat x + \beta_0 + \beta_1 \qquad \text{in region } R_r$$

The regions are in the context `region=`; $S_r$ of the $N$ positions lie in $R_r$. The factor on epsilon is what the
released code amounts to, which fills the other region with $\mu_r$, normalizes all and multiplies by $\sqrt{S_r/N}$; it
adds both shifts everywhere. No state: the statistics are the batch's own in evaluation too, and `axis=(1, 2)` frees an
output from the rest of its batch. Nothing folds. Weights that feed it are scale-invariant unit by unit, up to epsilon.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine_inits, init_affine
from normjax.norms._context import check_condition, require
from normjax.norms._modulate import modulate
from normjax.norms._regions import standardize_regions
from normjax.norms._resize import nearest_resize
from normjax.precision import TORCH, Precision, output_dtype
from normjax.reductions import AxisName
from normjax.transform import NormTransform, stateless


def region_normalize(
    x: jax.Array,
    region: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: _checks.Axes | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Region normalization of an array: $y = (1 + \gamma_r)\,\hat x + \beta_0 + \beta_1$ in region $r$.

    Args:
      x: Floating array `(batch, *space, channels)`.
      region: `(batch or 1, *any space, 1)` of any dtype, nonzero in the foreground (the hole); resized to `x`.
      scale, bias: $\gamma$ and $\beta$, stored around zero, `(2, channels)`: the background's row first; `None` for 0.
      axis: Axes over which a region's statistics are pooled; `None` is all but the features, as released.
      feature_axis: Channel axis of `x` and of `region`; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number.
      mask: Broadcastable to `x`; zeros belong to no region.
      axis_name: Mapped axis over which the pooled axes are sharded; merged by counts.
      precision: Dtypes.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If region, axes, mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 4, 1)
      >>> print(nj.region_normalize(x, jnp.array([0, 1]).reshape(1, 2, 1)).ravel().round(3))
      [-1.  1. -1.  1.]

    References:
      Yu et al. 2020, [Region Normalization for Image Inpainting](https://arxiv.org/abs/1911.10375).
    """
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    space = _checks.other_axes((0, feature), x.ndim)
    check_condition("region", region, x.shape, {0: x.shape[0], feature: 1})
    for name, parameter in (("scale", scale), ("bias", bias)):
        _checks.check_parameter(name, parameter, x.shape, (2, x.shape[feature]))
    foreground = nearest_resize(jnp.asarray(region).astype(bool), tuple(x.shape[a] for a in space), space)
    normalized = standardize_regions(x, foreground, axis, feature, epsilon, mask, axis_name, precision)

    def wide(row):
        return _checks.broadcast_to_features(row.astype(normalized.dtype), (feature,), x.ndim)

    gamma = None if scale is None else jnp.where(foreground, wide(scale[1]), wide(scale[0]))
    shift = None if bias is None else wide(bias[0]) + wide(bias[1])
    return modulate(normalized, gamma, shift).astype(output_dtype(x.dtype, (scale, bias), precision))


@method(
    "Region normalization", "Yu et al. 2020", "1911.10375", "vision", context=("region",), scale_invariance="per unit"
)
def region_norm(
    *,
    axis: _checks.Axes | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Basic region normalization (RN-B) as a transform; reads `region=`, no state.

    Args:
      axis, feature_axis, epsilon, axis_name, precision: As in `region_normalize`; `axis=(1, 2)` for each image.
      scale_init, bias_init: Initializers; zeros by default.

    Returns:
      The transform; parameters `{"scale", "bias"}` of shape `(2, channels)`, the background's row first.

    Raises:
      ValueError: If epsilon is negative, or in use if there is no `region=`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, x, hole = nj.region_norm(), jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 16, 16, 1))
      >>> params, state = norm.init(None, x, region=hole)
      >>> norm.apply(params, state, x, train=True, region=hole)[0].shape
      (2, 8, 8, 3)

    References:
      Yu et al. 2020, [Region Normalization for Image Inpainting](https://arxiv.org/abs/1911.10375).
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, bias_init, start=0.0)

    def init_params(rng, x, **context):
        del context
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        return init_affine(rng, (2, x.shape[feature]), precision, *inits)

    def fn(params, x, *, mask, region=None, **context):
        del context
        region = require(region, "region_norm", "region", "nonzero where the image has its hole")
        options = {"axis": axis, "feature_axis": feature_axis, "epsilon": epsilon, "axis_name": axis_name}
        return region_normalize(x, region, params["scale"], params["bias"], mask=mask, precision=precision, **options)

    return stateless(fn, init_params)
