r"""Dynamic tanh, DyT (Zhu et al. 2025): a transformer's norm replaced by a scaled tanh of each value.

$$y = \gamma \odot \tanh(\alpha x) + \beta$$

$\alpha$ is one learned scalar per layer. No statistics, no state. Weights that feed it are not scale-invariant: their
norm is a learned steepness. Scale and bias fold into the next layer.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.norms.point_norm import point_norm, point_normalize
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform


def dynamic_tanh(
    x: jax.Array,
    alpha: jax.Array | None = None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""DyT of an array: $y = \gamma \tanh(\alpha x) + \beta$.

    Args:
      x: Floating array of any shape.
      alpha: $\alpha$, one number as `()` or `(1,)`, or `None` for 1.
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
      >>> print(nj.dynamic_tanh(jnp.array([-100.0, 0.0, 1.0]), jnp.array(0.5)).round(3))
      [-1.     0.     0.462]

    References:
      Zhu et al. 2025, [Transformers without Normalization](https://arxiv.org/abs/2503.10622).
    """
    return point_normalize(
        x, jnp.tanh, alpha, None, scale, bias, feature_axes=feature_axes, mask=mask, precision=precision
    )


@method("Dynamic tanh", "Zhu et al. 2025", "2503.10622", "pointwise", folds="affine")
def dyt(
    *,
    alpha_init: float = 0.5,
    feature_axes: _checks.Axes = -1,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""DyT as a transform; parameters `{"alpha", "scale", "bias"}`, no state.

    Args:
      alpha_init: Initial $\alpha$. The authors' LLaMA has no bias and starts attention norms higher than the others:
        0.8 and 0.2 at 7B, 0.6 and 0.15 at 13B, 0.2 and 0.05 at 34B and 70B.
      use_scale, use_bias, scale_init, bias_init: As in `point_norm`.
      feature_axes, precision: As in `dynamic_tanh`.

    Returns:
      The transform.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.dyt(alpha_init=0.8, use_bias=False).init(None, jnp.ones((2, 3)))
      >>> print(params["alpha"], params["scale"])
      0.8 [1. 1. 1.]

    References:
      Zhu et al. 2025, [Transformers without Normalization](https://arxiv.org/abs/2503.10622).
    """
    return point_norm(
        jnp.tanh,
        alpha_init=alpha_init,
        feature_axes=feature_axes,
        use_shift=False,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        precision=precision,
    )
