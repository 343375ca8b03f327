r"""EvoNorm, batch-dependent series (Liu et al. 2020): normalization and activation found as one expression.

$$y = \gamma \frac{x}{\max(\sqrt{s^2_{bwh} + \epsilon},\, d(x))} + \beta,\qquad
d_{B0} = v x + \sqrt{s^2_{wh}+\epsilon},\quad d_{B1} = (x+1)\sqrt{\langle x^2\rangle_{wh}+\epsilon},\quad
d_{B2} = \sqrt{\langle x^2\rangle_{wh}+\epsilon} - x$$

$s^2_{bwh}$ is the biased variance of the batch; $s^2_{wh}$ and $\langle x^2\rangle_{wh}$ belong to one instance.
Nothing is centred. Only the batch variance has a running value and instances are measured in evaluation too: nothing
folds but $\gamma$ and $\beta$. In training, weights before B0 and B2 are scale-invariant unit by unit up to epsilon,
before B1 they are not. B2's root mean square minus x cancels where x is large; it is computed without that difference.
Published trap: ports with the unbiased instance variance give NaN on 1x1 maps.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._compat import maximum
from normjax._method import method
from normjax.moments import Moments, centred, pool_moments, variance
from normjax.norms._affine import Initializer, affine
from normjax.norms._axes import spatial_axes
from normjax.norms._evo import init_evo, rms_minus_values, root, scale_shift, times_v
from normjax.norms._running_statistics import update_running
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform

Variant = Literal["B0", "B1", "B2"]


def evo_normalize_b(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    v: jax.Array | None = None,
    *,
    variant: Variant = "B0",
    var: jax.Array | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> tuple[jax.Array, Moments]:
    r"""EvoNorm B0, B1 or B2 of an array: $y = \gamma x / \max(\sqrt{s^2 + \epsilon}, d(x)) + \beta$.

    Args:
      x: Floating array with batch axis 0, a feature axis and at least one spatial axis.
      scale: $\gamma$, `(channels,)`, or `None` for 1.
      bias: $\beta$, `(channels,)`, or `None` for 0.
      v: $v$ of B0, `(channels,)`, or `None` for 1; B1 and B2 have none.
      variant: Which denominator.
      var: Variance to use instead of the batch's, `(channels,)`: the running one, in evaluation.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number. 1e-5 as the authors have it; timm's B0 has 1e-3.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the batch is sharded; merged by counts.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      `(y, moments)`: the output and the batch's moments, empty (count 0) where `var` replaces them.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the variant is unknown, no spatial axis is left, or mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y, _ = nj.evo_normalize_b(jnp.array([[[-3.0], [1.0]], [[-1.0], [3.0]]]))
      >>> print((100 * y[..., 0]).round())
      [[-134.   33.]
       [ -45.   60.]]

    References:
      Liu et al. 2020, [Evolving Normalization-Activation Layers](https://arxiv.org/abs/2004.02967).
    """
    _checks.check_choice("variant", variant, Variant)
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    instance = standardization(x, spatial_axes(x.ndim, feature, 0), epsilon=epsilon)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    around, centre, within = centred(values, mask, instance)
    if var is None:
        others = _checks.other_axes((feature,), x.ndim)
        spec = standardization(x, others, axis_name=axis_name, axis_index_groups=axis_index_groups)
        _, moments = pool_moments(centre, within, spec)
        second = variance(moments)
    else:
        _checks.check_parameter("var", var, x.shape, (x.shape[feature],))
        second = _checks.broadcast_to_features(var.astype(values.dtype), (feature,), x.ndim)
        moments = Moments(*[jnp.zeros_like(second)] * 3)
    spread = variance(within)
    if variant == "B0":
        right = times_v(values, v, feature) + root(spread, epsilon)
    else:
        rms = root(spread + within.mean**2, epsilon)
        right = (values + 1) * rms if variant == "B1" else rms_minus_values(values, around, within, rms, epsilon)
    denominator = maximum(right, root(second, epsilon))
    positive = denominator > 0
    y = jnp.where(positive, values / jnp.where(positive, denominator, 1), 0)
    return affine(y, x, scale, bias, (feature,), precision), moments


@method(
    "EvoNorm B0, B1, B2",
    "Liu et al. 2020",
    "2004.02967",
    "batch",
    state=("var",),
    folds="affine",
    scale_invariance="per unit",
)
def evo_norm_b(
    *,
    variant: Variant = "B0",
    feature_axis: int = -1,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    apply_activation: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """EvoNorm B as a transform; parameters `{"scale", "bias"}` and `"v"` for B0, state `{"var"}`.

    The defaults are the authors' TensorFlow layer; timm's is `unbiased=True`, and `epsilon=1e-3` for B0.

    Args:
      variant, feature_axis, epsilon, axis_name, axis_index_groups: As in `evo_normalize_b`.
      momentum: Weight of the old running variance.
      unbiased: Whether the running variance is the unbiased one.
      apply_activation: Whether there is a nonlinearity; without, scale and bias are all that is left, and no state.
      scale_init: Initializer of the scale; ones by default, zeros for the last norm of a residual branch.
      bias_init: Initializer of the bias; zeros by default.
      precision: Dtypes and cast order. The running variance is float32 or wider whatever it says.

    Returns:
      The transform.

    Raises:
      ValueError: If the variant is unknown, epsilon is negative or momentum is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.evo_norm_b().init(None, jnp.ones((2, 5, 5, 3)))
      >>> sorted(params), sorted(state)
      (['bias', 'scale', 'v'], ['var'])

    References:
      Liu et al. 2020, [Evolving Normalization-Activation Layers](https://arxiv.org/abs/2004.02967).
    """
    _checks.check_choice("variant", variant, Variant)
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("momentum", momentum)

    def init(rng, x, **context):
        del context
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        spatial_axes(x.ndim, feature, 0)
        with_v = apply_activation and variant == "B0"
        params = init_evo(rng, x.shape[feature], precision, scale_init, bias_init, with_v)
        state = {"var": jnp.ones((x.shape[feature],), statistics_dtype(x.dtype))} if apply_activation else {}
        return params, state

    options: dict[str, Any] = {"variant": variant, "feature_axis": feature_axis, "epsilon": epsilon}
    options |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups, "precision": precision}

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        own = (params["scale"], params["bias"])
        if not apply_activation:
            return scale_shift(x, *own, feature_axis=feature_axis, mask=mask, precision=precision), state
        var = None if train else state["var"]
        y, moments = evo_normalize_b(x, *own, params.get("v"), var=var, mask=mask, **options)
        return y, update_running(state, moments, momentum, unbiased=unbiased) if train else state

    return NormTransform(init, apply)
