r"""CRMSNorm (Jiang et al. 2023): RMS normalization of a zero-mean vector that is stored without its last entry.

$$y = \frac{z}{\sqrt{\frac{1}{n+1}\left(\sum_i z_i^2 + \left(\sum_i z_i\right)^2\right) + \epsilon}},
\qquad z \in \mathbb R^n$$

The entry left out is $-\sum_i z_i$, so that this is the RMS normalization of all $n + 1$ entries, with the same
epsilon. Under the root is a sum of positive terms: nothing cancels. A transformer whose residual stream has mean zero
may keep it compressed and needs no layer norm. No parameters (they fold into the consumers), no state. Weights that
feed it are jointly scale-invariant up to epsilon.
"""

import functools

import jax
import jax.numpy as jnp

import pallas_kernels
from normjax import _checks
from normjax._method import method
from normjax.norms._affine import affine, multiplied
from normjax.norms._kernels import Implementation, runs_kernel
from normjax.precision import TORCH, EpsilonMode, Precision, inverse_root, statistics_dtype
from normjax.reductions import prepare, raw_means, standardization
from normjax.transform import NormTransform, stateless


def crms_normalize(
    x: jax.Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "inside",
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> jax.Array:
    r"""CRMS normalization of a compressed array.

    Args:
      x: Floating array, $z$ above, of any shape.
      axis: The compressed axis, of length $n$ for $n + 1$ features.
      epsilon: Non-negative number; 1e-5 as in the authors' torch code, their JAX code has 1e-6.
      epsilon_mode: Where epsilon sits.
      mask: Broadcastable to `x`; zeros leave features out, also of the sum.
      precision: Dtypes and cast order.
      implementation: As in `normjax.rms_normalize`.

    Returns:
      The normalized array, compressed like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axis, mask or epsilon do not fit.
      NotImplementedError: If a kernel is named that lacks what the call asks for.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> whole = nj.rms_normalize(jnp.array([[1.0, 2.0, -3.0]]), epsilon=1e-5)
      >>> bool(jnp.allclose(nj.crms_normalize(jnp.array([[1.0, 2.0]])), whole[:, :2]))
      True

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    _checks.check_epsilon(epsilon)
    refused = {"mask": mask is not None, "epsilon_mode": epsilon_mode != "inside", "precision": precision != TORCH}
    if runs_kernel(implementation, **refused):
        return pallas_kernels.crms_norm(x, axis=axis, epsilon=epsilon, implementation=implementation)
    spec = standardization(x, (axis,))
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    (mean, square), count = raw_means((values, values * values), mask, spec)
    square = (count * square + (count * mean) ** 2) / (count + 1)
    factor = inverse_root(jnp.where(count > 0, square, 1), epsilon, epsilon_mode)
    normalized, precision = multiplied(values, factor, x.dtype, (), precision)
    return affine(normalized, x, None, None, spec.axes, precision)


@method("Compressed RMS normalization", "Jiang et al. 2023", "2305.14858", "token", scale_invariance="joint")
def crms_norm(
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "inside",
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> NormTransform:
    """CRMS normalization as a transform without parameters or state.

    Args:
      axis, epsilon, epsilon_mode, precision, implementation: As in `crms_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y, _ = nj.crms_norm(epsilon=0.0).apply({}, {}, jnp.array([[3.0, -3.0]]), train=True)
      >>> print(y.round(3))
      [[ 1.225 -1.225]]

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    _checks.check_epsilon(epsilon)
    own = {"axis": axis, "epsilon": epsilon, "epsilon_mode": epsilon_mode}
    normalize = functools.partial(crms_normalize, **own, precision=precision, implementation=implementation)
    return stateless(lambda params, x, *, mask, **context: normalize(x, mask=mask))
