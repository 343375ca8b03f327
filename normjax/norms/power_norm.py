r"""PowerNorm (Shen et al. 2020): the running quadratic mean in training too, and an approximate backward pass.

$$u = \frac{x}{\sqrt{\langle x^2\rangle_{\text{group}} + 10^{-5}}},\qquad z = \frac{u}{\sqrt{\phi + \epsilon}},\qquad
y = \gamma \odot z + \beta,\qquad \phi \leftarrow \alpha\phi + (1-\alpha)\,q,\quad q = \langle u^2\rangle_B$$

$$\hat g = \gamma \odot \partial_y - (1-\alpha_b)\,\nu \odot z,\qquad \nu \leftarrow \nu + \langle \hat g z\rangle,
\qquad \partial_u = \hat g / \sqrt{q + \epsilon}$$

$(1-\alpha_b)\nu$ is the paper's $\nu$. While the step $k \le W$ (warm-up) $z$ uses $q$ itself, and for $k < W$ $\phi$
first becomes the average of all $q$. State: `var` is $\phi$, `count` is $k$, and the backward pass writes `ema_gz`,
$\nu$ (see `normjax.backward_state`). Group scaling stays online in evaluation, so only the rest folds. It also makes
the weights before it scale-invariant group by group.

Published as such: a mask reaches $q$ only, the backward mean runs over padding too; `mask_backward=True` is the
correct rule. $\nu$ diverges where $(1-\alpha_b)\langle z^2\rangle > 2$, e.g. when activations jump and there is no
group scaling; `stable=True` bounds that step.
"""

import functools

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.backward_state import OVERWRITE_WITH_GRADIENT, keep_in_backward, require_written, write_in_backward
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine
from normjax.norms._gradient_statistics import backward_set, batch_spec, gradient_means, keep_unseen, mean_square
from normjax.norms.rms_norm import rms_normalize
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare
from normjax.transform import NormTransform


def _group_size(features: tuple[int, ...], num_groups: int) -> int:
    if len(features) != 1 or num_groups < 1 or features[0] % num_groups:
        raise ValueError(
            f"num_groups={num_groups} must divide a single feature axis, got features of shape {features}; "
            "num_groups=None leaves group scaling out."
        )
    return features[0] // num_groups


def _scale_groups(values: jax.Array, mask: jax.Array | None, axis: int, group_size: int) -> jax.Array:
    if mask is not None and mask.shape[axis] != 1:
        raise ValueError(
            f"group scaling mixes features, so the mask must have size 1 on axis {axis}; got a mask of shape "
            f"{tuple(mask.shape)}. num_groups=None leaves group scaling out."
        )
    size = None if group_size == values.shape[axis] else group_size
    return rms_normalize(values, axis=axis, group_size=size, epsilon=1e-5)


def _approximate_backward(g, z, written, saved, *, spec, spread, rate: float, stable: bool):
    """The cotangent of u, and the new state, from that of z."""
    factor, over, seen = saved
    z = z if over[0] is None else jnp.where(over[0], z, 0)
    if stable:
        (energy,) = gradient_means((z * z,), over, spec)
        rate = spread(rate / jnp.maximum(rate * energy, 1))
    projected = g - rate * spread(written["ema_gz"]) * z
    (mean,) = gradient_means((projected * z,), over, spec)
    new = {"ema_gz": written["ema_gz"].astype(mean.dtype) + mean}
    return projected * factor, keep_unseen(new, written, seen)


@method(
    "PowerNorm",
    "Shen et al. 2020",
    "2003.07845",
    "batch",
    state=("var", "count"),
    written_by_backward=("ema_gz",),
    folds="affine",
    scale_invariance="per group",
)
def power_norm(
    *,
    feature_axes: _checks.Axes = -1,
    num_groups: int | None = 1,
    warmup: int = 10000,
    momentum: float = 0.9,
    backward_momentum: float = 0.9,
    epsilon: float = 1e-5,
    stable: bool = False,
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
    r"""PowerNorm as a transform; parameters `{"scale", "bias", "_overwrite_with_gradient"}`, state `{"var", "count"}`.

    Wrap the optimizer in `overwrite_with_gradient`. A batch that is wholly masked out leaves all state as it was.

    Args:
      feature_axes: Axes that keep their own statistics; all others are reduced.
      num_groups: Groups of the single feature axis for group scaling (the authors': one per attention head); `None`
        leaves it out.
      warmup: $W$, steps in which the batch's own mean square normalizes it.
      momentum: $\alpha$, weight of the old running mean square.
      backward_momentum: $\alpha_b$; nearer to 1 is safer.
      epsilon: Non-negative number added to mean squares; that of group scaling is always 1e-5.
      stable: Whether $(1-\alpha_b)\langle z^2\rangle$ is clipped to 1, without which $\nu$ can diverge.
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
      ValueError: If epsilon, a momentum or warm-up is out of range, or groups, mask or parameters do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.power_norm(), jnp.array([[3.0, -4.0]])
      >>> params, state = norm.init(None, x)
      >>> loss = lambda params: jnp.sum(norm.apply(params, state, x, train=True)[0] ** 2)
      >>> print(jax.grad(loss)(params)["_overwrite_with_gradient"]["ema_gz"].round(3))
      [2. 2.]

    References:
      Shen et al. 2020, [PowerNorm](https://arxiv.org/abs/2003.07845).
    """
    _checks.check_epsilon(epsilon)
    _checks.check_fraction("momentum", momentum)
    _checks.check_fraction("backward_momentum", backward_momentum)
    _checks.check_count("warmup", warmup)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)

    def init(rng, x, **context):
        del context
        _, features = batch_spec(x, feature_axes, epsilon, axis_name, axis_index_groups)
        shape, dtype = tuple(x.shape[a] for a in features), statistics_dtype(x.dtype)
        if num_groups is not None:
            _group_size(shape, num_groups)
        params = init_affine(rng, shape, precision, *inits)
        state = {"var": jnp.ones(shape, dtype), "count": jnp.zeros((), jnp.int32)}
        return {**params, OVERWRITE_WITH_GRADIENT: {"ema_gz": jnp.zeros(shape, dtype)}}, state

    def apply(params, state, x, *, train, mask=None, **context):
        del context
        spec, features = batch_spec(x, feature_axes, epsilon, axis_name, axis_index_groups)
        values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
        if num_groups is not None:
            size = _group_size(tuple(x.shape[a] for a in features), num_groups)
            values = _scale_groups(values, mask, features[0], size)

        def spread(statistic):
            return _checks.broadcast_to_features(statistic.astype(values.dtype), features, x.ndim)

        scale, bias, running = params.get("scale"), params.get("bias"), state["var"]
        if frozen or not train:
            y = affine(values * inverse_root(spread(running), epsilon), x, scale, bias, features, precision)
            return keep_in_backward(y, params.get(OVERWRITE_WITH_GRADIENT)), state
        written = require_written(params, ("ema_gz",))
        square, seen = mean_square(values, mask, spec)
        running, count = running.astype(square.dtype), state["count"] + 1
        k = count.astype(square.dtype)
        z = values * inverse_root(spread(jnp.where(count <= warmup, square, running)), epsilon)
        over = backward_set(values, mask if mask_backward else None, spec)
        saved = (inverse_root(spread(square), epsilon), over, seen)
        backward = functools.partial(
            _approximate_backward, spec=spec, spread=spread, rate=1 - backward_momentum, stable=stable
        )
        z = write_in_backward(backward, values, z, written, saved)
        averaged = jnp.where(count < warmup, running * (k - 1) / k + square / k, running)
        new = {"var": momentum * averaged + (1 - momentum) * square, "count": count}
        return affine(z, x, scale, bias, features, precision), keep_unseen(new, state, seen)

    return NormTransform(init, apply)
