r"""Unified Normalization (Yang et al. 2022): mean squares smoothed over a window, gradient statistics likewise.

With the batch's mean square $q = \langle x^2\rangle_B$ written to slot $k \bmod M$ of a window in step $k$,

$$\hat\sigma^2 = \exp \frac1M \sum_m \log q_m,\qquad z = \frac{x}{\sqrt{\hat\sigma^2+\epsilon}},\qquad
y = \gamma \odot z + \beta,\qquad \bar\sigma^2 \leftarrow \alpha\bar\sigma^2 + (1-\alpha)\hat\sigma^2$$

$$\hat g = r\,\gamma \odot \partial_y,\qquad m = \langle \hat g z\rangle,\qquad
s \leftarrow \alpha s + (1-\alpha) \frac1{M_b} \sum_j m_j,\qquad
\partial_x = \frac{\hat g - s \odot z}{\sqrt{\hat\sigma^2+\epsilon}}$$

A geometric mean forward, an arithmetic one backward; $q$ and $m$ themselves stand for them in warm-up and until the
window is full. After 1000 steps $r$ is the ratio of the new deviation to the running one, clipped to [1/5, 5].
Outlier filtration skips a batch: where the arithmetic exceeds the geometric mean of the window in any feature by
more than $M$ times the variance of its deviations, $q$ and $m$ are used and the running values take their slots.

State: `var` is $\bar\sigma^2$, `buffer_x2` the window, `count` is $k$, `skipped` counts skips; the backward pass writes
`ema_gz`, $s$, and `buffer_gz` (see `normjax.backward_state`). Evaluation uses $\bar\sigma^2$ and folds. While $q$ is
used, weights that feed it are scale-invariant unit by unit; later as far as the window follows. That is the forward
pass: the backward one takes out a running mean of the radial part, a tenth of it in the first step, so that gradients
are not orthogonal to the weights, and projecting them undoes a part of each step.

Published hazards. Skipped batches enter $\bar\sigma^2$, which then fills slots: after outliers, and longest after a
lasting fall of the scale, the filter latches and skips for many steps. A warm-up shorter than the window leaves slots
empty, which look like outliers. `max_skips=` guards against both. The threshold includes the spread between features;
where they are alike it is tight. A mask reaches $q$ only, the backward means run over padding too;
`mask_backward=True` is the correct rule.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.backward_state import OVERWRITE_WITH_GRADIENT, keep_in_backward, require_written, write_in_backward
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine
from normjax.norms._gradient_statistics import backward_set, batch_spec, gradient_means, keep_unseen, mean_square
from normjax.norms._window import put, smooth
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare
from normjax.transform import NormTransform


def _smoothed_backward(g, z, written, saved, *, spec, spread, warmup: int, momentum: float):
    """The cotangent of x, and the new state, from that of z."""
    factor, ratio, count, skip, seen, over = saved
    z, g = (z if over[0] is None else jnp.where(over[0], z, 0)), g * spread(ratio)
    (mean,) = gradient_means((g * z,), over, spec)
    old, size = written["ema_gz"].astype(mean.dtype), written["buffer_gz"].shape[0]
    window = put(written["buffer_gz"], count, jnp.where(skip, old, mean))
    plain = (count <= max(size, warmup - 1)) | skip
    smoothed = jnp.where(plain, mean, jnp.mean(window, axis=0).astype(mean.dtype))
    ema = momentum * old + (1 - momentum) * smoothed
    radial = jnp.where(seen, jnp.where(skip, mean, ema), 0)
    new = keep_unseen({"ema_gz": ema, "buffer_gz": window}, written, seen)
    return (g - spread(radial) * z) * factor, new


def _scaled_gradient(g, value, written, ratio):
    del value
    return g * ratio.astype(g.dtype), written


@method(
    "Unified normalization",
    "Yang et al. 2022",
    "2208.01313",
    "batch",
    state=("var", "buffer_x2", "count", "skipped", "(streak)"),
    written_by_backward=("ema_gz", "buffer_gz"),
    folds="all",
    scale_invariance="per unit",
)
def unified_norm(
    *,
    feature_axes: _checks.Axes = -1,
    window: int | Sequence[int] = 4,
    warmup: int = 4000,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    outlier_filtration: bool = False,
    max_skips: int | None = None,
    mask_backward: bool = False,
    frozen: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Unified Normalization as a transform; parameters `{"scale", "bias", "_overwrite_with_gradient"}`.

    State is `{"var", "buffer_x2", "count", "skipped"}`. Wrap the optimizer in `overwrite_with_gradient`. A batch that
    is wholly masked out leaves all state as it was.

    Args:
      feature_axes: Axes that keep their own statistics; all others are reduced.
      window: $M$, or $(M, M_b)$ if the windows of the two passes differ; 1 is plain quadratic-mean batch norm.
      warmup: First step with smoothing and filtration.
      momentum: $\alpha$, weight of the old running values.
      epsilon: Non-negative number added to mean squares.
      outlier_filtration: Whether outliers are skipped; the authors' choice for vision, not for language.
      max_skips: Guard of the filtration, `None` as published: skipped batches leave the running mean square alone, the
        filter waits until the window is full, and after this many skips in a row (say $M$) the window and the running
        mean square start again from the batch. State gains `"streak"`.
      mask_backward: Whether the backward pass leaves out what the mask does; `False` is published.
      frozen: Whether running statistics are used, and all state kept, in training too.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.
      axis_name: Mapped axis over which the batch is sharded; forward and backward means are merged by counts.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order. State is float32 or wider whatever it says.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon, momentum, window, warm-up or guard is out of range, or mask or parameters do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.unified_norm(momentum=0.5), jnp.array([[2.0, -4.0]])
      >>> params, state = norm.init(None, x)
      >>> y, state = norm.apply(params, state, x, train=True)
      >>> print(y.round(3), state["var"].round(3))
      [[ 1. -1.]] [2.5 8.5]

    References:
      Yang et al. 2022, [Unified Normalization](https://arxiv.org/abs/2208.01313).
    """
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("momentum", momentum)
    _checks.check_count("warmup", warmup)
    windows = (window, window) if isinstance(window, int) else tuple(window)
    if len(windows) != 2:
        raise ValueError(f"expected window to be an int or a pair (forward, backward), got window={window!r}.")
    for size in windows:
        _checks.check_count("window", size, 1)
    if max_skips is not None:
        _checks.check_count("max_skips", max_skips, 1)
        if not outlier_filtration:
            raise ValueError(f"max_skips={max_skips} guards the filtration; pass outlier_filtration=True with it.")
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)

    def init(rng, x, **context):
        del context
        _, features = batch_spec(x, feature_axes, epsilon, axis_name, axis_index_groups)
        shape, dtype = tuple(x.shape[a] for a in features), statistics_dtype(x.dtype)
        params = init_affine(rng, shape, precision, *inits)
        written = {"ema_gz": jnp.zeros(shape, dtype), "buffer_gz": jnp.zeros((windows[1], *shape), dtype)}
        counters = ("count", "skipped") if max_skips is None else ("count", "skipped", "streak")
        state = {"var": jnp.ones(shape, dtype), "buffer_x2": jnp.zeros((windows[0], *shape), dtype)}
        state |= {name: jnp.zeros((), jnp.int32) for name in counters}
        return {**params, OVERWRITE_WITH_GRADIENT: written}, state

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        spec, features = batch_spec(x, feature_axes, epsilon, axis_name, axis_index_groups)
        values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))

        def spread(statistic):
            return _checks.broadcast_to_features(statistic.astype(values.dtype), features, x.ndim)

        scale, bias = params.get("scale"), params.get("bias")
        if frozen or not train:
            y = affine(values * inverse_root(spread(state["var"]), epsilon), x, scale, bias, features, precision)
            return keep_in_backward(y, params.get(OVERWRITE_WITH_GRADIENT)), state
        written = require_written(params, ("ema_gz", "buffer_gz"))
        square, seen = mean_square(values, mask, spec)
        options = {"warmup": warmup, "momentum": momentum, "epsilon": epsilon, "max_skips": max_skips}
        var, ratio, skip, new = smooth(state, square, seen, filtered=outlier_filtration, **options)
        factor = inverse_root(spread(var), epsilon)
        over = backward_set(values, mask if mask_backward else None, spec)
        saved = (factor, ratio, new["count"], skip, seen, over)
        backward = functools.partial(_smoothed_backward, spec=spec, spread=spread, warmup=warmup, momentum=momentum)
        z = write_in_backward(backward, values, values * factor, written, saved)
        if scale is not None:
            # The published gradient of the scale carries r, that of the bias does not.
            scale = write_in_backward(_scaled_gradient, scale, scale, {}, ratio)
        return affine(z, x, scale, bias, features, precision), keep_unseen(new, state, seen)

    return NormTransform(init, apply)
