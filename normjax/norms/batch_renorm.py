r"""Batch renormalization (Ioffe 2017): batch normalization corrected towards the running statistics.

$$y = \gamma\left(\frac{x-\mu_B}{\sigma_B}\,r + d\right) + \beta,\qquad
r = \mathrm{clip}\!\left(\frac{\sigma_B}{\sigma}, r_{\min}, r_{\max}\right),\quad
d = \mathrm{clip}\!\left(\frac{\mu_B-\mu}{\sigma}, -d_{\max}, d_{\max}\right)$$

$\sigma_B$ is the root of variance and epsilon; $r$ and $d$ are constants in the backward pass. As in Keras the standard
deviation is averaged, not the variance, and the statistics that correct ($\mu, \sigma$) are kept apart from those that
evaluate, with a momentum of their own. Evaluation is one affine map that folds. Weights before it are not
scale-invariant unless $r$ and $d$ are clipped.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import Moments, standardize, variance
from normjax.norms._affine import Initializer, affine, affine_inits
from normjax.norms._axes import batch_axes
from normjax.norms._running_statistics import initialize, move, normalize_with_statistics, seen_features
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform

Bound = float | jax.Array | Callable[[jax.Array], jax.Array]


def batch_renormalize(
    x: jax.Array,
    mean: jax.Array,
    stddev: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    r_max: float | jax.Array = 3.0,
    r_min: float | jax.Array | None = None,
    d_max: float | jax.Array = 5.0,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-3,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> tuple[jax.Array, Moments]:
    r"""Batch renormalization of an array towards a running mean and standard deviation.

    Args:
      x: Floating array.
      mean: $\mu$, of the shape of the feature axes.
      stddev: $\sigma$, likewise; never taken below $\sqrt\epsilon$.
      scale: $\gamma$, likewise, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      r_max: Upper bound of $r$; infinity does not clip.
      r_min: Lower bound of $r$; `None` is `1 / r_max`, 0 does not clip.
      d_max: Bound of $|d|$.
      feature_axes: Axes that keep their own statistics.
      epsilon: Non-negative number added to the variance.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the batch is sharded; statistics are merged by counts.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      `(y, moments)`: the normalized array and the batch's moments.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask, statistics, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, _ = nj.batch_renormalize(x, jnp.array([1.0]), jnp.array([2.0]), epsilon=0.0)
      >>> print(y.T)
      [[0. 1.]]

    References:
      Ioffe 2017, [Batch Renormalization](https://arxiv.org/abs/1702.03275).
    """
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    spec = standardization(x, batch_axes(x.ndim, features, axis_name), epsilon=epsilon, **mapped)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    normalized, moments = standardize(values, mask, spec)
    shape, dtype = tuple(x.shape[a] for a in features), values.dtype
    for name, statistic in (("mean", mean), ("stddev", stddev)):
        _checks.check_parameter(name, statistic, x.shape, shape)
    old_mean, old = (_checks.broadcast_to_features(s.astype(dtype), features, x.ndim) for s in (mean, stddev))
    old = jnp.maximum(old, max(math.sqrt(epsilon), float(jnp.finfo(dtype).tiny)))
    batch = jax.lax.stop_gradient(moments)
    top, largest = jnp.asarray(r_max, dtype), jnp.asarray(d_max, dtype)
    bottom = 1 / top if r_min is None else jnp.asarray(r_min, dtype)
    r = jnp.clip(jnp.sqrt(variance(batch) + epsilon) / old, bottom, top)
    d = jnp.clip((batch.mean - old_mean) / old, -largest, largest)
    return affine(normalized * r + d, x, scale, bias, features, precision), moments


@method(
    "Batch renormalization",
    "Ioffe 2017",
    "1702.03275",
    "batch",
    state=("mean", "var", "stddev", "renorm_mean", "renorm_stddev", "(count)"),
    folds="all",
)
def batch_renorm(
    *,
    r_max: Bound = 3.0,
    r_min: Bound | None = None,
    d_max: Bound = 5.0,
    momentum: float = 0.99,
    renorm_momentum: float = 0.99,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-3,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Batch renormalization as a transform; parameters `{"scale", "bias"}`.

    Args:
      r_max: Number, or schedule of the number of earlier steps, a float (state gains `"count"`). The paper ramps it
        from 1 to 3, e.g. `optax.linear_schedule(1, 3, 35_000, 5_000)`.
      r_min: Likewise; `None` is `1 / r_max`.
      d_max: Likewise; from 0 to 5 in the paper. With 1 and 0 this is batch normalization.
      momentum: Weight of the old value of the statistics for evaluation.
      renorm_momentum: Weight of the old value of those that correct.
      feature_axes, epsilon, axis_name, axis_index_groups, precision: As in `batch_renormalize`.
      scale_init, bias_init: Initializers; ones and zeros by default.

    Returns:
      The transform; `"var"` in its state is `stddev**2 - epsilon`, which evaluation and folding read.

    Raises:
      ValueError: If epsilon is negative or a momentum is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.batch_renorm(r_max=lambda step: 1 + 2 * jnp.minimum(step / 40_000, 1))
      >>> params, state = norm.init(None, jnp.ones((2, 3)))
      >>> sorted(state)
      ['count', 'mean', 'renorm_mean', 'renorm_stddev', 'stddev', 'var']

    References:
      Ioffe 2017, [Batch Renormalization](https://arxiv.org/abs/1702.03275).
    """
    _checks.check_epsilon(epsilon)
    for name, value in (("momentum", momentum), ("renorm_momentum", renorm_momentum)):
        _checks.check_fraction(name, value)
    bounds = {"r_max": r_max, "r_min": r_min, "d_max": d_max}
    counted = any(callable(bound) for bound in bounds.values())

    def init(rng, x, **context):
        del context
        starts = {"mean": 0, "var": 1, "stddev": 1, "renorm_mean": 0, "renorm_stddev": 1}
        inits = affine_inits(scale_init, bias_init)
        params, state = initialize(rng, x, feature_axes, axis_name, precision, *inits, starts)
        return params, state | ({"count": jnp.zeros((), jnp.int32)} if counted else {})

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        own = params["scale"], params["bias"]
        common = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "precision": precision}
        if not train:
            return normalize_with_statistics(x, state["mean"], state["var"], *own, **common), state
        step = state["count"].astype(state["mean"].dtype) if counted else 0
        common |= {name: b(step) if callable(b) else b for name, b in bounds.items()}
        mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        y, moments = batch_renormalize(x, state["renorm_mean"], state["renorm_stddev"], *own, **common, **mapped)
        moments = jax.lax.stop_gradient(moments)
        seen = seen_features(moments, state["mean"].shape)
        batch = {"mean": moments.mean, "stddev": jnp.sqrt(variance(moments) + epsilon)}
        new = state | move(state, batch, momentum, seen)
        new |= move(state, {f"renorm_{name}": value for name, value in batch.items()}, renorm_momentum, seen)
        new["var"] = jnp.where(seen, jnp.maximum(new["stddev"] ** 2 - epsilon, 0), state["var"])
        if counted:
            new["count"] = state["count"] + jnp.any(seen).astype(jnp.int32)
        return y, new

    return NormTransform(init, apply)
