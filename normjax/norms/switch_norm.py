r"""Switchable normalization (Luo et al. 2019): learned mixtures of instance, layer and batch statistics.

$$y = \gamma\frac{x-\sum_k w_k\mu_k}{\sqrt{\sum_k w'_k\sigma^2_k+\epsilon}}+\beta,\qquad
w = \mathrm{softmax}(\lambda),\ w' = \mathrm{softmax}(\lambda'),\ k\in\{\mathrm{in},\mathrm{ln},\mathrm{bn}\}$$

Layer and batch statistics are pooled from the instances', whose variance is the unbiased one, as in the authors' code:
$\sigma^2_{\mathrm{ln}} = \langle\sigma^2_{\mathrm{in}}\rangle_c + \mathrm{var}_c(\mu_{\mathrm{in}})$, likewise over the
batch. Without spatial axes two kinds are left, layer and batch, both with the unbiased variance. State is the running
batch statistics, which start at 0. Evaluation keeps the other two, so that only scale and bias fold. Weights before it
are scale-invariant jointly.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import Moments
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine
from normjax.norms._running_statistics import update_running
from normjax.norms._switch_statistics import given, statistics
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, Standardization, prepare, standardization
from normjax.transform import NormTransform


def switch_normalize(
    x: jax.Array,
    mean_logits: jax.Array,
    var_logits: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    running: tuple[jax.Array, jax.Array] | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> tuple[jax.Array, Moments]:
    r"""Normalization by mixed statistics.

    Args:
      x: Floating array, the batch on its first axis.
      mean_logits: $\lambda$, `(3,)` for instance, layer and batch; `(2,)` for layer and batch where `x` has rank 2.
      var_logits: $\lambda'$, likewise.
      scale: $\gamma$, `(channels,)`, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      running: Mean and variance in the place of the batch's, each `(channels,)`.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the mixed variance.
      mask: Broadcastable to `x`; zeros do not enter the statistics. Instances are pooled by their counts.
      axis_name: Mapped axis over which the batch is sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      `(y, moments)`: the normalized array and the batch statistics it used, as moments.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, mask, logits, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y, _ = nj.switch_normalize(jnp.array([[0.0, 2.0], [4.0, 6.0]]), jnp.ones(2), jnp.ones(2))
      >>> print(y.round(3))
      [[-0.671 -0.224]
       [ 0.224  0.671]]

    References:
      Luo et al. 2019, [Differentiable Learning-to-Normalize via Switchable
      Normalization](https://arxiv.org/abs/1806.10779).
    """
    feature, spatial = _axes(x, feature_axis)
    for name, logits in (("mean_logits", mean_logits), ("var_logits", var_logits)):
        if logits.shape != (kinds := (_kinds(x.ndim),)):
            raise ValueError(f"expected {name} of shape {kinds} for an input of shape {x.shape}, got {logits.shape}.")
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    over_batch = standardization(x, 0, epsilon=epsilon, **mapped)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    specs = (Standardization((feature,)), *([] if running else [over_batch]))
    around, kinds = statistics(values, mask, spatial, specs)
    if running:
        kinds.append(
            given(*(_checks.broadcast_to_features(s.astype(values.dtype), (feature,), x.ndim) for s in running))
        )
    w, v = (jax.nn.softmax(logits.astype(values.dtype)) for logits in (mean_logits, var_logits))
    # From the first mean: the weights sum to 1 only up to rounding, which a large common offset would multiply.
    first, *others = (kind.centre for kind in kinds)
    shift = jnp.asarray(sum(w[i] * first.minus(other) for i, other in enumerate(others, 1)))
    factor = inverse_root(jnp.asarray(sum(v[i] * kind.var for i, kind in enumerate(kinds))), epsilon)
    batch = kinds[-1]
    y = affine((around + shift) * factor, x, scale, bias, (feature,), precision)
    return y, Moments(batch.valid, batch.centre.mean, batch.var * batch.valid)


def _axes(x, feature_axis: int) -> tuple[int, tuple[int, ...]]:
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    if feature == 0 or x.ndim < 2:
        raise ValueError(f"feature_axis={feature_axis} of an input of rank {x.ndim} leaves no batch on its first axis.")
    return feature, _checks.other_axes((0, feature), x.ndim)


def _kinds(ndim: int) -> int:
    return 3 if ndim > 2 else 2


@method(
    "Switchable normalization",
    "Luo et al. 2019",
    "1806.10779",
    "batch",
    state=("mean", "var", "(count)"),
    folds="affine",
    scale_invariance="joint",
)
def switch_norm(
    *,
    feature_axis: int = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Switchable normalization as a transform; parameters `{"scale", "bias", "mean_logits", "var_logits"}`.

    Args:
      feature_axis, epsilon, axis_name, axis_index_groups, precision: As in `switch_normalize`.
      momentum: Weight of the old running value: 0.9 in the authors' 2-D layer, 0.997 in 1-D and 3-D. `None` is their
        batch average: the mean and variance of all batches together (state gains `"count"`).
      scale_init, bias_init: Initializers; ones and zeros by default.

    Returns:
      The transform; its logits start at 1.

    Raises:
      ValueError: If epsilon is negative or momentum outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.switch_norm().init(None, jnp.ones((2, 5, 5, 3)))
      >>> print(params["mean_logits"], state["var"])
      [1. 1. 1.] [0. 0. 0.]

    References:
      Luo et al. 2019, [Differentiable Learning-to-Normalize via Switchable
      Normalization](https://arxiv.org/abs/1806.10779).
    """
    _checks.check_epsilon(epsilon)
    if momentum is not None:
        _checks.check_fraction("momentum", momentum)

    def init(rng, x, **context):
        del context
        feature, _ = _axes(x, feature_axis)
        shape, dtype = (x.shape[feature],), statistics_dtype(x.dtype)
        state = {"mean": jnp.zeros(shape, dtype), "var": jnp.zeros(shape, dtype)}
        state |= {"count": jnp.zeros((), jnp.int32)} if momentum is None else {}
        params = init_affine(rng, shape, precision, *affine_inits(scale_init, bias_init))
        logits = {name: jnp.ones(_kinds(x.ndim), precision.parameters) for name in ("mean_logits", "var_logits")}
        return params | logits, state

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        arguments = (params[name] for name in ("mean_logits", "var_logits", "scale", "bias"))
        common = {"feature_axis": feature_axis, "epsilon": epsilon, "mask": mask, "precision": precision}
        if not train:
            return switch_normalize(x, *arguments, running=(state["mean"], state["var"]), **common)[0], state
        common |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        y, moments = switch_normalize(x, *arguments, **common)
        new = update_running(state, moments, momentum)
        if momentum is None:
            # The batches' means differ: the variance of all of them together has that spread too.
            earlier = state["count"].astype(new["var"].dtype)
            new["var"] += earlier * (new["mean"] - state["mean"]) ** 2
        return y, new

    return NormTransform(init, apply)
