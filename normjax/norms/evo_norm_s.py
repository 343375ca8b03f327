r"""EvoNorm, sample-based series (Liu et al. 2020): no batch statistics, the same in training and evaluation.

$$y_{S0} = \gamma \frac{x\,\sigma(v x)}{\sqrt{s^2_g + \epsilon}} + \beta,\qquad
y_{S1} = \gamma \frac{x\,\sigma(x)}{\sqrt{s^2_g + \epsilon}} + \beta,\qquad
y_{S2} = \gamma \frac{x\,\sigma(x)}{\sqrt{\langle x^2\rangle_g + \epsilon}} + \beta$$

$s^2_g$ is the biased variance, $\langle x^2\rangle_g$ the mean square of one instance's group of channels; nothing is
centred. Without the nonlinearity an affine map is left; timm's variants S0a, S1a, S2a still divide by the root then. No
state. The sigmoid sees x itself, so that weights before it are not scale-invariant; only $\gamma$ and $\beta$ fold.
"""

from typing import Any, Literal

import jax

from normjax import _checks
from normjax._method import method
from normjax.moments import standardize, variance
from normjax.norms._affine import Initializer, affine
from normjax.norms._evo import init_evo, times_v
from normjax.norms._groups import check_groups
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform, stateless

Variant = Literal["S0", "S1", "S2", "S0a", "S1a", "S2a"]


def evo_normalize_s(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    v: jax.Array | None = None,
    *,
    variant: Variant = "S0",
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    apply_activation: bool = True,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""EvoNorm S0, S1 or S2 of an array: $y = \gamma\, x\, \sigma(v x) / \sqrt{s_g^2 + \epsilon} + \beta$.

    Args:
      x: Floating array with batch axis 0 and a feature axis, e.g. `(batch, height, width, channels)`.
      scale: $\gamma$, `(channels,)`, or `None` for 1.
      bias: $\beta$, `(channels,)`, or `None` for 0.
      v: $v$ of S0, `(channels,)`, or `None` for 1; the others have none.
      variant: Which one; those on `a` differ where the activation is left out.
      num_groups: Number of groups; exactly one of this and `group_size` is given, the other is `None`.
      group_size: Channels per group.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number. 1e-5 as the authors have it; timm's S0a, S1a, S2a have 1e-3.
      apply_activation: Whether there is a nonlinearity; without, S0, S1 and S2 do not normalize either.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the spatial axes are sharded.
      precision: Dtypes and cast order.

    Returns:
      The output, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the variant is unknown, the groups do not divide the channels, or anything does not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.evo_normalize_s(jnp.array([[[-3.0], [1.0]], [[-1.0], [3.0]]]), num_groups=1)[..., 0].round(2))
      [[-0.07  0.37]
       [-0.13  1.43]]

    References:
      Liu et al. 2020, [Evolving Normalization-Activation Layers](https://arxiv.org/abs/2004.02967).
    """
    _checks.check_choice("variant", variant, Variant)
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    neighbours = (feature, x.shape[feature] // check_groups(x, feature, num_groups, group_size))
    reduced = _checks.other_axes((0, feature), x.ndim)
    options = {"centre": not variant.startswith("S2"), "axis_name": axis_name, "neighbours": neighbours}
    spec = standardization(values, reduced, epsilon=epsilon, **options)
    _, moments = standardize(values, mask, spec)
    y = values * inverse_root(variance(moments), epsilon)
    if apply_activation:
        y = y * jax.nn.sigmoid(times_v(values, v, feature))
    elif not variant.endswith("a"):
        y = values
    return affine(y, x, scale, bias, (feature,), precision)


@method("EvoNorm S0, S1, S2", "Liu et al. 2020", "2004.02967", "vision", folds="affine")
def evo_norm_s(
    *,
    variant: Variant = "S0",
    num_groups: int | None = 32,
    group_size: int | None = None,
    fit_groups: bool = False,
    feature_axis: int = -1,
    epsilon: float | None = None,
    apply_activation: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """EvoNorm S as a transform; parameters `{"scale", "bias"}` and `"v"` for S0, no state.

    The authors' TensorFlow layer is `evo_norm_s(fit_groups=True)`; timm's needs groups that divide the channels.

    Args:
      variant: Which one; those on `a` are timm's, which divide by the root without the activation too.
      num_groups: Number of groups; `None` if `group_size` is given.
      group_size: Channels per group; `None` if `num_groups` is given.
      fit_groups: Whether to lower `num_groups` until it divides the channels, instead of raising.
      epsilon: Non-negative number; `None` is 1e-5, and timm's 1e-3 for the variants on `a`.
      apply_activation: Whether there is a nonlinearity; without, S0, S1 and S2 are scale and bias alone.
      scale_init: Initializer of the scale; ones by default, zeros for the last norm of a residual branch.
      bias_init: Initializer of the bias; zeros by default.
      feature_axis, axis_name, precision: As in `evo_normalize_s`.

    Returns:
      The transform.

    Raises:
      ValueError: If the variant is unknown, epsilon is negative, `fit_groups` meets `group_size`, or `init` meets
        channels that the groups do not divide.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.evo_norm_s(variant="S1", num_groups=2).init(None, jnp.ones((2, 5, 5, 4)))
      >>> sorted(params)
      ['bias', 'scale']

    References:
      Liu et al. 2020, [Evolving Normalization-Activation Layers](https://arxiv.org/abs/2004.02967).
    """
    _checks.check_choice("variant", variant, Variant)
    eps = (1e-3 if variant.endswith("a") else 1e-5) if epsilon is None else epsilon
    _checks.check_epsilon(eps)
    if fit_groups and (num_groups is None or num_groups < 1):
        raise ValueError(f"fit_groups=True lowers num_groups, so give num_groups >= 1; got num_groups={num_groups!r}.")

    def fitted(x) -> int | None:
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        if num_groups is None or not fit_groups:
            return num_groups
        return next(g for g in range(num_groups, 0, -1) if x.shape[feature] % g == 0)

    def init_params(rng, x, **context):
        del context
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        check_groups(x, feature, fitted(x), group_size)
        with_v = apply_activation and variant.startswith("S0")
        return init_evo(rng, x.shape[feature], precision, scale_init, bias_init, with_v)

    options: dict[str, Any] = {"variant": variant, "group_size": group_size, "feature_axis": feature_axis}
    options |= {"epsilon": eps, "apply_activation": apply_activation, "axis_name": axis_name, "precision": precision}

    def fn(params, x, *, mask, **context):
        del context
        own = params["scale"], params["bias"], params.get("v")
        return evo_normalize_s(x, *own, num_groups=fitted(x), mask=mask, **options)

    return stateless(fn, init_params)
