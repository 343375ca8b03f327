r"""Adaptive instance normalization, AdaIN (Huang and Belongie 2017): a content takes the statistics of a style.

$$y = \alpha \left(\sigma_s \frac{c - \mu_c}{\sigma_c} + \mu_s\right) + (1 - \alpha)\, c,\qquad
\sigma^2 = \text{var} + \epsilon$$

Statistics are per example and channel over space, the variances unbiased, epsilon beside both of them, as in the port
that everybody uses. The style is in the context `style=`, of any spatial size. No parameters, no state; nothing folds.
Weights that feed the content are scale-invariant channel by channel where $\alpha = 1$.
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._context import require
from normjax.norms._style import content_and_style
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, stateless


def adain_normalize(
    content: jax.Array,
    style: jax.Array,
    *,
    alpha: float = 1.0,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    style_mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""AdaIN of arrays: $y = \alpha\,(\sigma_s (c - \mu_c)/\sigma_c + \mu_s) + (1 - \alpha)\, c$.

    Args:
      content: $c$, floating, `(batch, *space, channels)`.
      style: $s$, floating, `(batch or 1, *any space, channels)`.
      alpha: $\alpha$ in [0, 1], how far the content moves to the style.
      feature_axis: Channel axis of both; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to both variances.
      mask: Broadcastable to `content`; zeros do not enter its statistics.
      style_mask: Broadcastable to `style`, likewise.
      precision: Dtypes.

    Returns:
      The stylized array, shaped like `content`.

    Raises:
      TypeError: If content or style is not floating.
      ValueError: If style, axes, masks, alpha or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> content, style = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), jnp.array([10.0, 30.0]).reshape(1, 2, 1)
      >>> print(nj.adain_normalize(content, style).ravel().round())
      [ 6. 20. 34.]

    References:
      Huang and Belongie 2017, [Arbitrary Style Transfer in Real-time](https://arxiv.org/abs/1703.06868).
    """
    _checks.check_fraction("alpha", alpha)

    def affine(target):
        return alpha * target.deviation(epsilon), alpha * target.mean

    values, stylized, _, _ = content_and_style(
        content, style, feature_axis, epsilon, "inside", mask, style_mask, precision, affine
    )
    y = stylized if alpha == 1 else stylized + (1 - alpha) * values
    return y.astype(content.dtype)


@method(
    "Adaptive instance normalization",
    "Huang and Belongie 2017",
    "1703.06868",
    "vision",
    context=("style", "(style_mask)"),
    scale_invariance="per unit",
)
def adain(
    *, alpha: float = 1.0, feature_axis: int = -1, epsilon: float = 1e-5, precision: Precision = TORCH
) -> NormTransform:
    r"""AdaIN as a transform; reads `style=` (and `style_mask=` if there is one), no parameters, no state.

    Args:
      alpha, feature_axis, epsilon, precision: As in `adain_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If alpha is outside [0, 1] or epsilon negative, or in use if there is no `style=`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, style = jnp.ones((1, 4, 4, 2)), jnp.full((1, 2, 2, 2), 3.0)
      >>> y, _ = nj.adain().apply({}, {}, x, train=True, style=style)
      >>> float(y.max())
      3.0

    References:
      Huang and Belongie 2017, [Arbitrary Style Transfer in Real-time](https://arxiv.org/abs/1703.06868).
    """
    _checks.check_fraction("alpha", alpha)
    _checks.check_epsilon(epsilon)

    def fn(params, x, *, mask, style=None, style_mask=None, **context):
        del params, context
        style = require(style, "adain", "style", "an array of shape (batch, *space, channels)")
        options = {"alpha": alpha, "feature_axis": feature_axis, "epsilon": epsilon, "precision": precision}
        return adain_normalize(x, style, mask=mask, style_mask=style_mask, **options)

    return stateless(fn)
