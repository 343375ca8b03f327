r"""Adaptive RMS normalization, in the form of k-diffusion (Crowson 2023): the condition writes the scale.

$$y = x \odot \frac{1 + W c}{\sqrt{\langle x^2 \rangle + \epsilon}}$$

$W$ has no bias and starts at zero. The published bfloat16 code rounds $1 + Wc$, then its product with the inverse root,
and multiplies in the input's dtype: `Precision(cast_order="cast_then_multiply")`. Without that everything is float32
and rounded once. No state. Weights that feed it are scale-invariant up to epsilon; the scale depends on the sample, so
nothing folds.
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.moments import standardize, variance
from normjax.norms._affine import Initializer, default_init
from normjax.norms._context import require
from normjax.norms._modulate import along_features, at_least, linear
from normjax.precision import TORCH, Precision, inverse_root, scale_shift_cast, statistics_dtype
from normjax.reductions import prepare, standardization
from normjax.transform import NormTransform, stateless


def ada_rms_normalize(
    x: jax.Array,
    condition: jax.Array,
    kernel: jax.Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""RMS normalization with a scale from a condition: $y = (1 + W c)\,x / \sqrt{\langle x^2\rangle + \epsilon}$.

    Args:
      x: Floating array.
      condition: $c$, of shape `(..., condition features)`, for each sample, each token, or for all.
      kernel: $W$, of shape `(condition features, features)`.
      axis: The feature axis.
      epsilon: Non-negative number.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      precision: Dtypes and cast order.

    Returns:
      The normalized array, in the shape and dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the shapes do not fit or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.ada_rms_normalize(jnp.array([[3.0, -3.0]]), jnp.ones((1, 1)), jnp.array([[0.0, 1.0]])).round(3))
      [[ 1. -2.]]

    References:
      Crowson et al. 2024, [Hourglass Diffusion Transformers](https://arxiv.org/abs/2401.11605).
    """
    spec = standardization(x, axis, epsilon=epsilon, centre=False)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    normalized, moments = standardize(values, mask, spec)
    scale = along_features(linear(at_least(condition, x), kernel, None, "condition"), x, axis, "condition")
    if precision.cast_order == "cast_then_multiply":
        factor = (1 + scale).astype(values.dtype) * inverse_root(variance(moments), epsilon)
        return values.astype(x.dtype) * factor.astype(x.dtype)
    return scale_shift_cast(normalized, scale, None, x.dtype, precision, 1.0)


@method(
    "Adaptive RMS normalization",
    "Crowson et al. 2024",
    "2401.11605",
    "conditional",
    context=("condition",),
    scale_invariance="joint",
)
def ada_rms_norm(
    *, axis: int = -1, epsilon: float = 1e-6, kernel_init: Initializer | None = None, precision: Precision = TORCH
) -> NormTransform:
    """RMS normalization with a scale from a condition; parameters `{"kernel"}`, context `condition=`, no state.

    Args:
      axis, epsilon, precision: As in `ada_rms_normalize`.
      kernel_init: Initializer of the kernel `(condition features, features)`; zeros by default.

    Returns:
      The transform; its `condition=` has shape `(..., condition features)`.

    Raises:
      ValueError: If epsilon is negative, or the condition is missing or does not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.ada_rms_norm()
      >>> params, _ = norm.init(None, jnp.ones((2, 5, 3)), condition=jnp.ones((2, 4)))
      >>> params["kernel"].shape
      (4, 3)

    References:
      Crowson et al. 2024, [Hourglass Diffusion Transformers](https://arxiv.org/abs/2401.11605).
    """
    _checks.check_epsilon(epsilon)
    kernel_init = default_init(kernel_init, 0.0)
    needed = "ada_rms_norm", "condition", "an array of shape (..., condition features)"

    def init_params(rng, x, condition=None, **context):
        del context
        condition = require(condition, *needed)
        features = x.shape[_checks.canonical_axes(axis, x.ndim)[0]]
        return {"kernel": kernel_init(rng, (condition.shape[-1], features), precision.parameters)}

    def fn(params, x, *, mask, condition=None, **context):
        del context
        options = {"axis": axis, "epsilon": epsilon, "mask": mask, "precision": precision}
        return ada_rms_normalize(x, require(condition, *needed), params["kernel"], **options)

    return stateless(fn, init_params)
