r"""Batch normalization (Ioffe and Szegedy 2015): each feature by its mean and variance over the batch.

$$y = \gamma \odot \frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}} + \beta,\qquad
\bar\mu \leftarrow m \bar\mu + (1-m)\mu_B,\quad \bar\sigma^2 \leftarrow m\bar\sigma^2 + (1-m)\sigma_B^2$$

Evaluation uses the running statistics $\bar\mu, \bar\sigma^2$ and is an affine map that folds into its neighbour.
Flax stores the biased variance, torch the unbiased one; both are here. With a mask this is masked batch norm: padding
enters no statistic, and evaluation uses the running ones, not the batch's as in the masked layer beside PowerNorm. In
training, weights that feed it are scale-invariant unit by unit, up to epsilon.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import Moments
from normjax.norms._affine import Initializer, affine_inits, standardized
from normjax.norms._axes import batch_axes
from normjax.norms._running_statistics import initialize, normalize_with_statistics, running_statistics, update_running
from normjax.precision import TORCH, Precision
from normjax.reductions import AxisName, standardization
from normjax.transform import NormTransform


def batch_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> tuple[jax.Array, Moments]:
    r"""Batch normalization by the batch's own statistics: $y = \gamma (x-\mu_B)/\sqrt{\sigma_B^2+\epsilon} + \beta$.

    Args:
      x: Floating array, e.g. `(batch, height, width, channels)`.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      feature_axes: Axes that keep their own statistics; all others are reduced. 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the variance.
      mask: Broadcastable to `x`; zeros (padding) do not enter the statistics.
      axis_name: Mapped axis over which the batch is sharded; statistics are merged by counts, so unequal masks on
        different devices are exact. Under `jit` with sharded arrays nothing is needed.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      `(y, moments)`: the normalized array and the batch's count, mean and M2, reduced axes kept with size 1.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the batch is empty, or axes, mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y, moments = nj.batch_normalize(jnp.array([[1.0, 5.0], [3.0, 9.0]]))
      >>> print(y.round(3), moments.mean)
      [[-1. -1.]
       [ 1.  1.]] [[2. 7.]]

    References:
      Ioffe and Szegedy 2015, [Batch Normalization](https://arxiv.org/abs/1502.03167).
    """
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    axes = batch_axes(x.ndim, features, axis_name)
    spec = standardization(x, axes, epsilon=epsilon, axis_name=axis_name, axis_index_groups=axis_index_groups)
    return standardized(x, scale, bias, features, spec, mask, precision)


@method(
    "Batch normalization",
    "Ioffe and Szegedy 2015",
    "1502.03167",
    "batch",
    state=("mean", "var", "(count)"),
    folds="all",
    scale_invariance="per unit",
)
def batch_norm(
    *,
    feature_axes: _checks.Axes = -1,
    momentum: float | None = 0.99,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    debias: bool = False,
    frozen: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Batch normalization as a transform; parameters `{"scale", "bias"}`, state `{"mean", "var"}`.

    torch's layer is `batch_norm(feature_axes=1, momentum=0.9, unbiased=True)`: its momentum is the weight of the new
    value. A batch that is wholly masked out leaves the state as it was.

    Args:
      feature_axes, epsilon, axis_name, axis_index_groups: As in `batch_normalize`.
      momentum: Weight of the old running value; `None` averages all batches equally (state gains `"count"`).
      unbiased: Whether the running variance is the unbiased one ($M_2/(n-1)$, torch); the batch is always
        normalized with the biased one.
      debias: Whether running values start at 0 and are divided by $1 - m^t$ when used, as Adam's moments are, so that
        early evaluation does not see the arbitrary start (0, 1). State gains `"count"`.
      frozen: Whether running statistics are used, and kept, in training too.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.
      precision: Dtypes and cast order. Running statistics are float32 or wider whatever it says.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative, momentum is outside [0, 1], or `debias` is asked for without a momentum.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.batch_norm(momentum=0.5)
      >>> params, state = norm.init(None, jnp.ones((2, 1)))
      >>> _, state = norm.apply(params, state, jnp.array([[0.0], [4.0]]), train=True)
      >>> print(state["mean"], state["var"])
      [1.] [2.5]

    References:
      Ioffe and Szegedy 2015, [Batch Normalization](https://arxiv.org/abs/1502.03167).
    """
    _checks.check_epsilon(epsilon)
    if momentum is None and debias:
        raise ValueError("debias=True needs a momentum; momentum=None already averages without a start value.")
    if momentum is not None:
        _checks.check_fraction("momentum", momentum)
    counted = debias or momentum is None
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)

    def init(rng, x, **context):
        del context
        starts = {"mean": 0, "var": 0 if debias else 1}
        params, state = initialize(rng, x, feature_axes, axis_name, precision, *inits, starts)
        return params, state | ({"count": jnp.zeros((), jnp.int32)} if counted else {})

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        own = params.get("scale"), params.get("bias")
        options = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "precision": precision}
        if frozen or not train:
            mean, var = running_statistics(state, momentum if debias else None)
            return normalize_with_statistics(x, mean, var, *own, **options), state
        mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        y, moments = batch_normalize(x, *own, **options, **mapped)
        return y, update_running(state, moments, momentum, unbiased=unbiased)

    return NormTransform(init, apply)
