r"""ScaleNorm (Nguyen and Salazar 2019): L2 normalization with one learned length.

$$y = g\, \frac{x}{\max(\|x\|_2, \epsilon)},\qquad g \in \mathbb R,\ g_0 = \sqrt d$$

The authors clamp the norm, they do not add epsilon to it: below it the map is linear with slope $g / \epsilon$. No
state. $g$ folds into the next linear layer; weights that feed it are jointly scale-invariant.
"""

import math

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, default_init
from normjax.norms.l2_norm import l2_normalize
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, stateless


def scale_normalize(
    x: jax.Array,
    scale: jax.Array,
    *,
    axis: _checks.Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""ScaleNorm of an array: $y = g\, x / \max(\|x\|_2, \epsilon)$.

    Args:
      x: Floating array of any shape.
      scale: $g$, a scalar array.
      axis: Axes over which the norm is taken.
      epsilon: Non-negative number at which the norm is clamped.
      mask: Broadcastable to `x`; zeros do not enter the norm.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the scale is not a scalar, or axes, mask or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.scale_normalize(jnp.array([[3.0, 4.0]]), jnp.array(10.0)))
      [[6. 8.]]

    References:
      Nguyen and Salazar 2019, [Transformers without Tears](https://arxiv.org/abs/1910.05895).
    """
    if scale.shape != ():
        raise ValueError(
            f"ScaleNorm has one scalar scale, got shape {tuple(scale.shape)}; "
            "for a scale per feature use l2_normalize or rms_normalize."
        )
    return l2_normalize(x, scale, axis=axis, epsilon=epsilon, mask=mask, precision=precision)


@method("ScaleNorm", "Nguyen and Salazar 2019", "1910.05895", "token", folds="affine", scale_invariance="joint")
def scale_norm(
    *,
    axis: _checks.Axes = -1,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""ScaleNorm as a transform; parameters `{"scale"}`, a scalar, no state.

    Args:
      axis, epsilon, precision: As in `scale_normalize`.
      scale_init: Initializer of the scale, `f(rng, shape, dtype)` with shape `()`; $\sqrt d$ by default.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.scale_norm().init(None, jnp.ones((2, 16)))
      >>> print(params["scale"])
      4.0

    References:
      Nguyen and Salazar 2019, [Transformers without Tears](https://arxiv.org/abs/1910.05895).
    """
    _checks.check_epsilon(epsilon)

    def init_params(rng, x, **context):
        del context
        features = math.prod(x.shape[a] for a in _checks.canonical_axes(axis, x.ndim))
        return {"scale": default_init(scale_init, features**0.5)(rng, (), precision.parameters)}

    def fn(params, x, *, mask, **context):
        del context
        return scale_normalize(x, params["scale"], axis=axis, epsilon=epsilon, mask=mask, precision=precision)

    return stateless(fn, init_params)
