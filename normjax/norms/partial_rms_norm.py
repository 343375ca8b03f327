r"""Partial RMS normalization (Zhang and Sennrich 2019): the mean square of the first features stands for all.

$$y = \gamma \odot \frac{x}{\sqrt{\langle x_{1..k}^2 \rangle} + \epsilon} + \beta,\qquad k = \lfloor p\, d \rfloor$$

The published torch file has epsilon outside the root, and its gradient at a zero vector is NaN in a naive port. No
state. Weights that feed it are jointly scale-invariant up to epsilon.
"""

import functools

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine, affine_inits, affine_params, multiplied
from normjax.precision import TORCH, EpsilonMode, Precision, inverse_root, statistics_dtype
from normjax.reductions import prepare, raw_means, standardization
from normjax.transform import NormTransform, stateless


def partial_rms_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    fraction: float = 0.0625,
    axis: int = -1,
    epsilon: float = 1e-8,
    epsilon_mode: EpsilonMode = "outside",
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Partial RMS normalization of an array: $y = \gamma\, x / (\text{rms}(x_{1..k}) + \epsilon) + \beta$.

    Args:
      x: Floating array of any shape.
      scale: $\gamma$, of shape `(features,)`, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      fraction: $p$ in (0, 1]; the statistic is taken over the first `int(features * fraction)` features.
      axis: The axis of the features.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits: `"outside"` the root as published, `"inside"`, or as a `"clamp"`.
      mask: Broadcastable to `x`; zeros do not enter the statistic.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the fraction leaves no feature, or axis, mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.partial_rms_normalize(jnp.array([[2.0, -2.0, 6.0, 8.0]]), fraction=0.5))
      [[ 1. -1.  3.  4.]]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """
    _checks.check_epsilon(epsilon)
    spec = standardization(x, (axis,), centre=False)
    (a,) = spec.axes
    size = int(x.shape[a] * fraction)
    if not 1 <= size <= x.shape[a]:
        raise ValueError(
            f"fraction={fraction!r} of the {x.shape[a]} features on axis {axis} is {size} features; "
            f"expected at least 1/{x.shape[a]} and at most 1."
        )
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    first = functools.partial(jax.lax.slice_in_dim, start_index=0, limit_index=size, axis=a)
    kept = mask if mask is None or mask.shape[a] == 1 else first(mask)
    (square,), count = raw_means((first(values) ** 2,), kept, spec)
    factor = inverse_root(jnp.where(count > 0, square, 1), epsilon, epsilon_mode)
    normalized, precision = multiplied(values, factor, x.dtype, (scale, bias), precision)
    return affine(normalized, x, scale, bias, spec.axes, precision)


@method(
    "Partial RMS normalization",
    "Zhang and Sennrich 2019",
    "1910.07467",
    "token",
    folds="affine",
    scale_invariance="joint",
)
def partial_rms_norm(
    *,
    fraction: float = 0.0625,
    axis: int = -1,
    epsilon: float = 1e-8,
    epsilon_mode: EpsilonMode = "outside",
    use_scale: bool = True,
    use_bias: bool = False,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Partial RMS normalization as a transform; parameters `{"scale"}` (and `"bias"` if asked for), no state.

    Args:
      fraction, axis, epsilon, epsilon_mode, precision: As in `partial_rms_normalize`.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative or the fraction is not in (0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.partial_rms_norm(fraction=0.25).init(None, jnp.ones((2, 8)))
      >>> params["scale"].shape
      (8,)

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """
    _checks.check_epsilon(epsilon)
    if not 0 < fraction <= 1:
        raise ValueError(f"expected fraction in (0, 1], got fraction={fraction!r}.")
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)
    normalize = functools.partial(partial_rms_normalize, fraction=fraction, axis=axis, precision=precision)

    def fn(params, x, *, mask, **context):
        del context
        scale, bias = params.get("scale"), params.get("bias")
        return normalize(x, scale, bias, epsilon=epsilon, epsilon_mode=epsilon_mode, mask=mask)

    return stateless(fn, affine_params((axis,), "axis", precision, inits))
