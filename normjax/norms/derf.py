r"""Dynamic erf, Derf (Chen et al. 2025): the point function that its authors found best in the place of a norm.

$$y = \gamma \odot \mathrm{erf}(\alpha x + s) + \beta$$

$\alpha$ and $s$ are learned scalars, one of each per layer. No statistics, no state. Weights that feed it are not
scale-invariant. Scale and bias fold into the next layer.
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.norms.point_norm import point_norm, point_normalize
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform


def dynamic_erf(
    x: jax.Array,
    alpha: jax.Array | None = None,
    shift: jax.Array | None = None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Derf of an array: $y = \gamma\, \mathrm{erf}(\alpha x + s) + \beta$.

    Args:
      x: Floating array of any shape.
      alpha: $\alpha$, one number as `()` or `(1,)`, or `None` for 1.
      shift: $s$, likewise, or `None` for 0.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      feature_axes: Axes on which scale and bias live; 1 for the authors' `channels_last=False`.
      mask, precision: As in `point_normalize`; the authors' code is `Precision(statistics=x.dtype)`.

    Returns:
      The output, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the mask or a parameter does not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.dynamic_erf(jnp.array([-100.0, 0.0, 1.0]), jnp.array(0.5)).round(1))
      [-1.   0.   0.5]

    References:
      Chen et al. 2025, [Stronger Normalization-Free Transformers](https://arxiv.org/abs/2512.10938).
    """
    return point_normalize(
        x, jax.lax.erf, alpha, shift, scale, bias, feature_axes=feature_axes, mask=mask, precision=precision
    )


@method("Dynamic erf", "Chen et al. 2025", "2512.10938", "pointwise", folds="affine")
def derf(
    *,
    alpha_init: float = 0.5,
    shift_init: float = 0.0,
    feature_axes: _checks.Axes = -1,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Derf as a transform; parameters `{"alpha", "shift", "scale", "bias"}`, no state.

    Args:
      alpha_init, shift_init, use_scale, use_bias, scale_init, bias_init: As in `point_norm`.
      feature_axes, precision: As in `dynamic_erf`.

    Returns:
      The transform.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.derf().init(None, jnp.ones((2, 3)))
      >>> print(params["alpha"], params["shift"])
      0.5 0.0

    References:
      Chen et al. 2025, [Stronger Normalization-Free Transformers](https://arxiv.org/abs/2512.10938).
    """
    return point_norm(
        jax.lax.erf,
        alpha_init=alpha_init,
        shift_init=shift_init,
        feature_axes=feature_axes,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        precision=precision,
    )
