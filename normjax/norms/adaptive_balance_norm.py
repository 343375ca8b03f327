r"""AdaB²N (Lyu et al. 2023): batch normalization for continual learning, each task with an adaptive weight.

$$\omega_k = \frac{e^{\psi_k} + n_k}{\sum_{j\le t} (e^{\psi_j} + n_j)},\quad
\mu = \sum_k \omega_k \langle x\rangle_k,\quad \sigma^2 = \sum_k \omega_k \langle (x-\mu)^2\rangle_k,\quad
y = \gamma\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}} + \beta$$

$n_k$ samples of the batch belong to task $k$, $t$ is the current task, $\psi$ (`task_weight`) is trained. Running
statistics (biased variance) move by $\eta \leftarrow \eta/(\eta+(1-m)^\kappa)$, first $m^\kappa$: $1/t$ for $\kappa=0$,
$m$ for 1; $\eta$ is state, so that a resumed run loses nothing. Evaluation is one affine map that folds. Weights before
it are scale-invariant unit by unit. As published, the weights do not sum to 1 where a task seen before is absent from
the batch, and both statistics shrink; `renormalize=True` weighs the tasks that are there.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import Moments, standardize, variance, weighted_central
from normjax.norms._affine import Initializer, affine, affine_inits
from normjax.norms._axes import batch_axes
from normjax.norms._running_statistics import initialize, normalize_with_statistics, seen_features, update_running
from normjax.norms._task_weights import task_weights
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform


def adaptive_balance_normalize(
    x: jax.Array,
    task: jax.Array | None,
    task_weight: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    current_task: jax.Array | int = 0,
    renormalize: bool = False,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> tuple[jax.Array, Moments, jax.Array]:
    r"""Batch normalization by task-weighted statistics.

    Args:
      x: Floating array, samples on its first axis.
      task: Integers, `(samples,)`; samples of no task (-1) enter no statistic. `None` is ordinary batch normalization.
      task_weight: $\psi$, `(tasks,)`.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      current_task: The highest task met before.
      renormalize: Whether the weights of the tasks in the batch are made to sum to 1.
      feature_axes: Axes that keep their own statistics.
      epsilon: Non-negative number added to the variance.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the batch is sharded; statistics are merged by counts.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order.

    Returns:
      `(y, moments, current_task)`: the normalized array, its weighted statistics as moments, the highest task by now.

    Raises:
      TypeError: If `x` is not floating or `task` not an integer.
      ValueError: If axes, mask, parameters, epsilon or `task` do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, task = jnp.array([[0.0], [2.0], [6.0]]), jnp.array([0, 0, 1])
      >>> _, moments, current = nj.adaptive_balance_normalize(x, task, jnp.zeros(2))
      >>> round(float(moments.mean[0, 0]), 3), int(current)
      (3.0, 1)

    References:
      Lyu et al. 2023, [Overcoming Recency Bias of Normalization Statistics in Continual
      Learning](https://arxiv.org/abs/2310.08855).
    """
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    axes = batch_axes(x.ndim, features, axis_name)
    spec = standardization(x, axes, epsilon=epsilon, axis_name=axis_name, axis_index_groups=axis_index_groups)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    current = jnp.asarray(current_task, jnp.int32)
    if task is None:
        normalized, moments = standardize(values, mask, spec)
        return affine(normalized, x, scale, bias, features, precision), moments, current
    weights, absent, count, current = task_weights(values, mask, task, task_weight, current, spec, renormalize)
    centred, _, mean, spread = weighted_central(values, weights, spec)
    # The mass of absent tasks pulls the mean to 0; 1 - (sum of the weights) would round at the size of the mean.
    shift = absent * mean
    var = jnp.where(count > 0, (1 - absent) * (spread + shift * shift), 1)
    y = affine((centred + shift) * inverse_root(var, epsilon), x, scale, bias, features, precision)
    return y, Moments(count, mean - shift, var * count), current


@method(
    "AdaB²N: adaptive balance of batch normalization",
    "Lyu et al. 2023",
    "2310.08855",
    "batch",
    state=("mean", "var", "eta", "current_task", "auxiliary_loss"),
    context=("(task)", "(current_task)"),
    folds="all",
    scale_invariance="per unit",
)
def adaptive_balance_norm(
    num_tasks: int,
    *,
    kappa: float = 1.0,
    momentum: float = 0.9,
    renormalize: bool = False,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""AdaB²N as a transform; parameters `{"scale", "bias", "task_weight"}`.

    The context `task=`, `(samples,)` integers, names each sample's task; without it training is ordinary batch norm.
    `current_task=` raises the highest task met, which otherwise is the highest one seen in a batch.

    The entry `"auxiliary_loss"` of the new state, $\langle(\mu-\bar\mu)^2\rangle + \langle(\sigma^2-\bar\sigma^2)^2
    \rangle$ with the new running statistics as constants, carries its gradient. Its sum over all layers, of a pure
    state, of linen's `updates["batch_stats"]` or of `nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))`:
    `sum(v for p, v in jax.tree_util.tree_leaves_with_path(state) if "auxiliary_loss" in jax.tree_util.keystr(p))`.

    Args:
      num_tasks: Number of tasks; their weights start at 0.
      kappa: $\kappa$ in [0, 1].
      momentum: $1 - m$, the weight of the old running value for $\kappa = 1$.
      renormalize, feature_axes, epsilon: As in `adaptive_balance_normalize`.
      scale_init, bias_init: Initializers; ones and zeros by default.
      axis_name, axis_index_groups, precision: As in `adaptive_balance_normalize`.

    Returns:
      The transform, with state `{"mean", "var", "eta" (0 before the first step), "current_task", "auxiliary_loss"}`.

    Raises:
      ValueError: If epsilon is negative, kappa or momentum outside [0, 1], or `num_tasks` below 1.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.adaptive_balance_norm(2, kappa=0.0)
      >>> x, task = jnp.array([[0.0], [2.0], [6.0]]), jnp.array([0, 0, 1])
      >>> params, state = norm.init(None, x)
      >>> _, state = norm.apply(params, state, x, train=True, task=task)
      >>> round(float(state["mean"][0]), 3), float(state["eta"]), int(state["current_task"])
      (3.0, 1.0, 1)

    References:
      Lyu et al. 2023, [Overcoming Recency Bias of Normalization Statistics in Continual
      Learning](https://arxiv.org/abs/2310.08855).
    """
    _checks.check_epsilon(epsilon)
    for name, value in (("kappa", kappa), ("momentum", momentum)):
        _checks.check_fraction(name, value)
    _checks.check_count("num_tasks", num_tasks, 1)

    def init(rng, x, **context):
        del context
        inits = affine_inits(scale_init, bias_init)
        params, state = initialize(rng, x, feature_axes, axis_name, precision, *inits, {"mean": 0, "var": 1})
        state |= {name: jnp.zeros((), state["mean"].dtype) for name in ("eta", "auxiliary_loss")}
        params |= {"task_weight": jnp.zeros(num_tasks, precision.parameters)}
        return params, state | {"current_task": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, train, mask=None, task=None, current_task=0, **context):
        del context
        own = params["scale"], params["bias"]
        common = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "precision": precision}
        if not train:
            return normalize_with_statistics(x, state["mean"], state["var"], *own, **common), state
        current = jnp.maximum(state["current_task"], jnp.asarray(current_task, jnp.int32))
        common |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups, "renormalize": renormalize}
        y, moments, current = adaptive_balance_normalize(
            x, task, params["task_weight"], *own, current_task=current, **common
        )
        seen, eta = seen_features(moments, state["mean"].shape), state["eta"]
        eta = jnp.where(eta > 0, eta / (eta + momentum**kappa), (1 - momentum) ** kappa)
        new = update_running(state, moments, 1 - eta) | {"current_task": current}
        new["eta"] = jnp.where(jnp.any(seen), eta, state["eta"])
        batch = jnp.stack([v.reshape(seen.shape).astype(eta.dtype) for v in (moments.mean, variance(moments))])
        gaps = jnp.where(seen[None], batch - jnp.stack([new["mean"], new["var"]]), 0)
        return y, new | {"auxiliary_loss": 2 * jnp.mean(gaps**2)}

    return NormTransform(init, apply)
