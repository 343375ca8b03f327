r"""Generalized divisive normalization (Ballé, Laparra and Simoncelli 2015): features divided by what others show.

$$y_i = \frac{x_i}{\sqrt{\beta_i + \sum_j \gamma_{ij} x_j^2}}\ \text{(GDN)},\qquad
y_i = \frac{x_i}{\beta_i + \sum_j \gamma_{ij} |x_j|}\ \text{(GDN1)},\qquad
\text{inverse (IGDN): multiplied instead}$$

Parameters are stored as $\sqrt{\beta + 2^{-36}}$ and $\sqrt{\gamma + 2^{-36}}$, bounded from below so that
$\beta \ge 10^{-6}, \gamma \ge 0$, with the gradient of `lower_bound`. They start at $\beta = 1, \gamma = 0.1\,I$.
Each position is normalized by its own features; a masked feature does not enter the sums of others. No state; the
function is not affine and $\beta$ is learned, so nothing folds and nothing is scale-invariant.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, default_init
from normjax.norms._lower_bound import lower_bound
from normjax.precision import TORCH, Precision, promote, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless

PEDESTAL = 2.0**-36


def gdn_normalize(
    x: jax.Array,
    beta: jax.Array,
    gamma: jax.Array,
    *,
    feature_axis: int = -1,
    inverse: bool = False,
    absolute: bool = False,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Divisive normalization by given weights: $y_i = x_i / \sqrt{\beta_i + \sum_j\gamma_{ij}x_j^2}$.

    Args:
      x: Floating array.
      beta: $\beta > 0$, of shape `(C,)`.
      gamma: $\gamma \ge 0$, of shape `(C, C)`: row i is what normalizes feature i.
      feature_axis: The axis of length C; 1 for torch's images.
      inverse: Whether to multiply instead of dividing (IGDN).
      absolute: Whether the sum is of magnitudes, without the root (GDN1).
      mask: Broadcastable to `x`; zeros do not enter the sums.
      precision: Dtype of the sums.

    Returns:
      The normalized array, in the shape and dtype of `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.gdn_normalize(jnp.array([[3.0, 4.0]]), jnp.zeros(2), jnp.ones((2, 2))))
      [[0.6 0.8]]

    References:
      Ballé et al. 2015, [GDN](https://arxiv.org/abs/1511.06281); Johnston et al. 2019, [GDN1](https://arxiv.org/abs/1912.08771).
    """
    _checks.check_input(x)
    (axis,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    size = x.shape[axis]
    _checks.check_parameter("beta", beta, x.shape, (size,))
    _checks.check_parameter("gamma", gamma, x.shape, (size, size))
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    # Masked values are zeroed before the square: where it overflows, its gradient would be 0 * inf.
    entering = values if mask is None else jnp.where(mask, values, 0)
    size_of = jnp.abs(entering) if absolute else entering * entering
    # The sum is a statistic: float32 on every device, whatever the default of matrix products is there.
    total = jnp.matmul(jnp.moveaxis(size_of, axis, -1), gamma.astype(values.dtype).T, precision="highest")
    beta = _checks.broadcast_to_features(beta.astype(values.dtype), (axis,), x.ndim)
    pool = beta + jnp.moveaxis(total, -1, axis)
    root = pool if absolute else jnp.sqrt(pool)
    return (values * root if inverse else values / root).astype(x.dtype)


@method("Generalized divisive normalization (GDN, GDN1, IGDN)", "Ballé et al. 2015", "1511.06281", "vision")
def gdn(
    *,
    feature_axis: int = -1,
    inverse: bool = False,
    absolute: bool = False,
    beta_min: float = 1e-6,
    beta_init: Initializer | None = None,
    gamma_init: Initializer | float = 0.1,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Generalized divisive normalization; parameters `{"beta", "gamma"}` in their stored form, no state.

    Args:
      feature_axis, inverse, absolute: As in `gdn_normalize`.
      beta_min: Lower bound of $\beta$, positive.
      beta_init: Initializer of $\beta$ itself; ones by default.
      gamma_init: Initializer of $\gamma$ itself, or a number times the identity.
      precision: Dtypes of parameters and sums.

    Returns:
      The transform.

    Raises:
      ValueError: If `beta_min` is not positive, or features and parameters do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.gdn(), jnp.array([[2.0, 0.0]])
      >>> params, _ = norm.init(None, x)
      >>> print(norm.apply(params, {}, x, train=True)[0].round(3))
      [[1.69 0.  ]]

    References:
      Ballé et al. 2015, [Density Modeling of Images using a Generalized Normalization
      Transformation](https://arxiv.org/abs/1511.06281).
    """
    if not 0 < beta_min < float("inf"):
        raise ValueError(f"expected a positive beta_min, got beta_min={beta_min!r}; at 0 the norm of zeros is NaN.")
    beta_init = default_init(beta_init, 1.0)

    def init_params(rng, x, **context):
        del context
        size = x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        keys = (None, None) if rng is None else jax.random.split(rng)
        named = {"beta": beta_init(keys[0], (size,), precision.parameters)}
        if callable(gamma_init):
            named["gamma"] = gamma_init(keys[1], (size, size), precision.parameters)
        else:
            named["gamma"] = jnp.asarray(gamma_init, precision.parameters) * jnp.eye(size, dtype=precision.parameters)
        return {name: jnp.sqrt(jnp.maximum(value + PEDESTAL, PEDESTAL)) for name, value in named.items()}

    def fn(params, x, *, mask, **context):
        del context
        # The square of a bfloat16 parameter near its bound would lose the pedestal.
        dtype = statistics_dtype(promote(x.dtype, *(value.dtype for value in params.values())))
        wide = {name: value.astype(dtype) for name, value in params.items()}
        beta = lower_bound(wide["beta"], (beta_min + PEDESTAL) ** 0.5) ** 2 - PEDESTAL
        gamma = lower_bound(wide["gamma"], PEDESTAL**0.5) ** 2 - PEDESTAL
        options = {"feature_axis": feature_axis, "inverse": inverse, "absolute": absolute}
        return gdn_normalize(x, beta, gamma, mask=mask, precision=precision, **options)

    return stateless(fn, init_params)
