r"""Content-aware AdaIN (Huang et al. 2025, AttenST): the content's own statistics stay in the blend.

$$y = (a\,\sigma_s + b\,\sigma_c)\,\frac{c - \mu_c}{\sigma_c + \epsilon} + a\,\mu_s + b\,\mu_c$$

Unlike AdaIN's, epsilon is beside the content's standard deviation, not its variance, and nowhere else. Deviations are
unbiased, per example and channel over space; the style is in the context `style=`. AttenST applies it once, to inverted
latents. No parameters, no state; nothing folds, and nothing before it is scale-invariant.
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._context import require
from normjax.norms._style import content_and_style
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, stateless


def content_aware_adain_normalize(
    content: jax.Array,
    style: jax.Array,
    *,
    style_weight: float = 0.6,
    content_weight: float = 0.4,
    feature_axis: int = -1,
    epsilon: float = 1e-4,
    mask: jax.Array | None = None,
    style_mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Content-aware AdaIN: $y = (a\,\sigma_s + b\,\sigma_c)(c - \mu_c)/(\sigma_c + \epsilon) + a\,\mu_s + b\,\mu_c$.

    Args:
      content: $c$, floating, `(batch, *space, channels)`.
      style: $s$, floating, `(batch or 1, *any space, channels)`.
      style_weight: $a$.
      content_weight: $b$.
      feature_axis: Channel axis of both; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the content's standard deviation.
      mask: Broadcastable to `content`; zeros do not enter its statistics.
      style_mask: Broadcastable to `style`, likewise.
      precision: Dtypes.

    Returns:
      The stylized array, shaped like `content`.

    Raises:
      TypeError: If content or style is not floating.
      ValueError: If style, axes, masks or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> content, style = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), jnp.array([10.0, 30.0]).reshape(1, 2, 1)
      >>> print(nj.content_aware_adain_normalize(content, style).ravel().round())
      [ 4. 13. 22.]

    References:
      Huang et al. 2025, [AttenST](https://arxiv.org/abs/2503.07307).
    """
    _, normalized, own, target = content_and_style(
        content, style, feature_axis, epsilon, "outside", mask, style_mask, precision
    )
    blended = style_weight * target.deviation() + content_weight * own.deviation()
    return (normalized * blended + style_weight * target.mean + content_weight * own.mean).astype(content.dtype)


@method(
    "Content-aware adaptive instance normalization",
    "Huang et al. 2025",
    "2503.07307",
    "vision",
    context=("style", "(style_mask)"),
)
def content_aware_adain(
    *,
    style_weight: float = 0.6,
    content_weight: float = 0.4,
    feature_axis: int = -1,
    epsilon: float = 1e-4,
    precision: Precision = TORCH,
) -> NormTransform:
    """Content-aware AdaIN as a transform; reads `style=` (and `style_mask=` if there is one), no state.

    Args:
      style_weight, content_weight, feature_axis, epsilon, precision: As in `content_aware_adain_normalize`.

    Returns:
      The transform; it has no parameters.

    Raises:
      ValueError: If epsilon is negative, or in use if there is no `style=`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, style = jnp.ones((1, 4, 4, 2)), jnp.full((1, 2, 2, 2), 3.0)
      >>> y, _ = nj.content_aware_adain().apply({}, {}, x, train=True, style=style)
      >>> print(y.max().round(3))
      2.2

    References:
      Huang et al. 2025, [AttenST](https://arxiv.org/abs/2503.07307).
    """
    _checks.check_epsilon(epsilon)
    options = {"style_weight": style_weight, "content_weight": content_weight, "feature_axis": feature_axis}

    def fn(params, x, *, mask, style=None, style_mask=None, **context):
        del params, context
        style = require(style, "content_aware_adain", "style", "an array of shape (batch, *space, channels)")
        return content_aware_adain_normalize(
            x, style, epsilon=epsilon, mask=mask, style_mask=style_mask, precision=precision, **options
        )

    return stateless(fn)
