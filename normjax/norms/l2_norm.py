r"""L2 normalization: each vector on the unit sphere, with the epsilons that real code has.

$$y = \gamma \odot \frac{x}{\max(\|x\|_2, \epsilon)} \quad\text{or}\quad \gamma \odot \frac{x}{\sqrt{\|x\|_2^2 +
\epsilon}} \quad\text{or}\quad \gamma \odot \frac{x}{\|x\|_2 + \epsilon}$$

torch's `normalize` clamps the norm at 1e-12, MaxText adds 1e-6 to the sum of squares (`epsilon_mode="inside"`), nGPT
has no epsilon. Published code without one is NaN at a zero vector, here and in its gradient; this one returns 0 with a
zero gradient. On word embeddings it is FixNorm (Nguyen and Chiang 2018), on the axis of a kernel nGPT's projection of
the weights. No state; an empty set has the norm 1. Weights that feed it are jointly scale-invariant.
"""

import functools

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import affine, multiplied
from normjax.precision import TORCH, EpsilonMode, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, raw_means, standardization
from normjax.transform import NormTransform, stateless


def l2_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    axis: _checks.Axes = -1,
    feature_axes: _checks.Axes | None = None,
    epsilon: float = 1e-12,
    epsilon_mode: EpsilonMode = "clamp",
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""L2 normalization of an array: $y = \gamma\, x / \max(\|x\|_2, \epsilon)$.

    Args:
      x: Floating array of any shape.
      scale: $\gamma$, a scalar or of the shape of the feature axes; `None` for 1.
      axis: Axes over which the norm is taken.
      feature_axes: Axes on which the scale lives; `None` means `axis`.
      epsilon: Non-negative number; 0 for none.
      epsilon_mode: `"clamp"` of the norm, `"inside"` the root (added to the sum of squares) or `"outside"` of it.
      mask: Broadcastable to `x`; zeros do not enter the norm.
      axis_name: Mapped axis over which the normalized axes are sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask, scale, epsilon or its mode do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      [[0.6 0.8]
       [0.  0. ]]

    References:
      Nguyen and Chiang 2018, [Improving Lexical Choice in Neural Machine Translation](https://arxiv.org/abs/1710.01329).
    """
    _checks.check_epsilon(epsilon)
    spec = standardization(x, axis, centre=False, axis_name=axis_name, axis_index_groups=axis_index_groups)
    named = spec.axes if feature_axes is None else _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    features = () if scale is None or scale.ndim == 0 else named
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    (square,), count = raw_means((values * values,), mask, spec)
    factor = inverse_root(jnp.where(count > 0, count * square, 1), epsilon, epsilon_mode)
    normalized, precision = multiplied(values, factor, x.dtype, (scale,), precision)
    return affine(normalized, x, scale, None, features, precision)


@method("L2 normalization", "Nguyen and Chiang 2018", "1710.01329", "token", scale_invariance="joint")
def l2_norm(
    *,
    axis: _checks.Axes = -1,
    epsilon: float = 1e-12,
    epsilon_mode: EpsilonMode = "clamp",
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """L2 normalization as a transform without parameters or state; with a learned scalar it is `scale_norm`.

    Args:
      axis, epsilon, epsilon_mode, axis_name, axis_index_groups, precision: As in `l2_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y, _ = nj.l2_norm(epsilon=0.0).apply({}, {}, jnp.array([[3.0, 4.0]]), train=True)
      >>> print(y)
      [[0.6 0.8]]

    References:
      Nguyen and Chiang 2018, [Improving Lexical Choice in Neural Machine Translation](https://arxiv.org/abs/1710.01329).
    """
    _checks.check_epsilon(epsilon)
    across = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    normalize = functools.partial(
        l2_normalize, axis=axis, epsilon=epsilon, epsilon_mode=epsilon_mode, precision=precision, **across
    )
    return stateless(lambda params, x, *, mask, **context: normalize(x, mask=mask))
