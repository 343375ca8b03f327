r"""Estimated batch normalization (Qiao et al. 2019, micro-batches): always by the running statistics.

$$\bar\mu' = (1-s)\bar\mu + s\langle x\rangle,\quad
\bar\sigma^{2\prime} = (1-s)\bar\sigma^2 + s\langle (x-\bar\mu)^2\rangle,\qquad
y = \gamma\frac{x-\bar\mu'}{\sqrt{\bar\sigma^{2\prime}+\epsilon}} + \beta$$

The batch's variance is taken around the old running mean, and statistics are constants in the backward pass: one
example is batch enough. State is the running statistics and the speed $s$. Evaluation is one affine map that folds.
Weights before it are not scale-invariant.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.moments import compute_moments, variance
from normjax.norms._affine import Initializer, affine_inits
from normjax.norms._axes import batch_axes
from normjax.norms._running_statistics import initialize, move, normalize_with_statistics, seen_features
from normjax.precision import TORCH, Precision, promote, statistics_dtype
from normjax.reductions import AxisName
from normjax.transform import NormTransform


@method(
    "Estimated batch normalization",
    "Qiao et al. 2019",
    "1903.10520",
    "batch",
    state=("mean", "var", "moving_speed"),
    context=("(moving_speed)",),
    folds="all",
)
def estimated_batch_norm(
    *,
    moving_speed: float = 0.0,
    feature_axes: _checks.Axes = -1,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Estimated batch normalization as a transform; parameters `{"scale", "bias"}`.

    Args:
      moving_speed: $s$ at the start, an entry of the state. At the authors' 0 nothing moves until it is set: by
        replacing that entry, or by `apply(..., moving_speed=s)`, which stores it. They tie it to the learning rate.
      feature_axes, epsilon, axis_name, axis_index_groups, precision: As in `batch_normalize`.
      scale_init, bias_init: Initializers; ones and zeros by default.

    Returns:
      The transform, with state `{"mean", "var", "moving_speed"}`.

    Raises:
      ValueError: If epsilon is negative or the speed is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.estimated_batch_norm()
      >>> x = jnp.array([[1.0], [3.0]])
      >>> params, state = norm.init(None, x)
      >>> _, state = norm.apply(params, state, x, train=True, moving_speed=0.5)
      >>> print(state["mean"], state["moving_speed"])
      [1.] 0.5

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("moving_speed", moving_speed)

    def init(rng, x, **context):
        del context
        inits = affine_inits(scale_init, bias_init)
        params, state = initialize(rng, x, feature_axes, axis_name, precision, *inits, {"mean": 0, "var": 1})
        return params, state | {"moving_speed": jnp.asarray(moving_speed, statistics_dtype(x.dtype))}

    def apply(params, state, x, *, train, mask=None, moving_speed=None, **context):
        del context
        moved = state
        if train:
            given = {} if moving_speed is None else {"moving_speed": jnp.asarray(moving_speed, state["mean"].dtype)}
            mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
            moved = _estimated(state | given, x, feature_axes=feature_axes, mask=mask, **mapped)
        affine = params["scale"], params["bias"]
        common = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "precision": precision}
        y = normalize_with_statistics(x, moved["mean"], moved["var"], *affine, **common)
        return y, {name: value.astype(state[name].dtype) for name, value in moved.items()}

    return NormTransform(init, apply)


def _estimated(state, x, *, feature_axes, mask, axis_name, axis_index_groups) -> dict[str, jax.Array]:
    """The state moved towards a batch, in the wider of its own dtype and the statistics'."""
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    axes = batch_axes(x.ndim, features, axis_name)
    moments = compute_moments(jax.lax.stop_gradient(x), axes, mask=mask, **mapped)
    dtype = promote(moments.mean.dtype, state["mean"].dtype)
    old = {name: value.astype(dtype) for name, value in state.items()}
    mean, var = (s.reshape(old["mean"].shape).astype(dtype) for s in (moments.mean, variance(moments)))
    batch = {"mean": mean, "var": var + (mean - old["mean"]) ** 2}
    return old | move(old, batch, 1 - old["moving_speed"], seen_features(moments, mean.shape))
