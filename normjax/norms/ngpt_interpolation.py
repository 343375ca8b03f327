r"""nGPT's residual (Loshchilov et al. 2024): an interpolation on the unit sphere.

$$h \leftarrow N\big(N(h) + |\alpha| \odot (N(F(h)) - N(h))\big),\qquad N(x) = x / \|x\|_2$$

The block's output $F(h)$ is the context `update=`. $\alpha$ is 0.05 at the start and stored like all scales of nGPT
(`ngpt_scale`). $h$ is of unit length already, and normalized once more as the authors do. No epsilon; a zero vector
gives 0 where theirs is NaN. No state. Weights that feed the stream, and those that feed the update, are jointly
scale-invariant.
"""

import functools

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._context import require
from normjax.norms.l2_norm import l2_normalize
from normjax.norms.ngpt_norm import base_scale_of, ngpt_scale
from normjax.precision import TORCH, Precision, promote, statistics_dtype
from normjax.transform import NormTransform, stateless


def ngpt_interpolate(
    h: jax.Array,
    update: jax.Array,
    alpha: jax.Array,
    *,
    axis: int = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""The residual of nGPT: $N(N(h) + |\alpha| \odot (N(F) - N(h)))$.

    Args:
      h: Floating array, the stream.
      update: $F(h)$, shaped like `h`.
      alpha: Step of each feature, as used (see `ngpt_scale`), of shape `(features,)`; its sign does not matter.
      axis: The axis of the features.
      mask: Broadcastable to `h`; zeros do not enter the norms.
      precision: Dtypes; all is computed in that of the statistics and rounded once.

    Returns:
      The new stream, of unit length, shaped like `h`.

    Raises:
      TypeError: If `h` is not floating.
      ValueError: If update, alpha, axis or mask do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> y = nj.ngpt_interpolate(jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0]), jnp.full(2, 0.5))
      >>> bool(jnp.allclose(y, 0.5**0.5))
      True

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    if update.shape != h.shape:
        raise ValueError(f"update has shape {tuple(update.shape)}, expected that of the stream, {tuple(h.shape)}.")
    axes = _checks.canonical_axes((axis,), h.ndim)
    _checks.check_input(h, axes)
    _checks.check_parameter("alpha", alpha, h.shape, (h.shape[axes[0]],))
    wide = statistics_dtype(h.dtype, precision)
    unit = functools.partial(l2_normalize, axis=axis, epsilon=0.0, mask=mask)
    step = _checks.broadcast_to_features(jnp.abs(alpha.astype(wide)), axes, h.ndim)
    start = unit(h.astype(wide))
    moved = start + step * (unit(update.astype(wide)) - start)
    return unit(moved).astype(h.dtype)


@method(
    "nGPT's residual", "Loshchilov et al. 2024", "2410.01131", "token", context=("update",), scale_invariance="joint"
)
def ngpt_interpolation(
    *, axis: int = -1, initial: float = 0.05, base_scale: float | None = None, precision: Precision = TORCH
) -> NormTransform:
    r"""The residual of nGPT as a transform of the stream; parameters `{"alpha"}`, context `update=`, no state.

    Args:
      axis, precision: As in `ngpt_interpolate`.
      initial, base_scale: Of $\alpha$, as in `ngpt_scale`.

    Returns:
      The transform; its `apply` raises `ValueError` without `update=`.

    Raises:
      ValueError: If the base scale is not positive.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, h = nj.ngpt_interpolation(), jnp.array([[1.0, 0.0]])
      >>> params, state = norm.init(None, h)
      >>> y, state = norm.apply(params, state, h, train=True, update=h[:, ::-1])
      >>> round(float(y[0, 1]), 4)  # 0.05 / sqrt(0.95² + 0.05²)
      0.0526

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    base_scale_of(base_scale, 1)

    def init_params(rng, x, **context):
        del rng, context
        (a,) = _checks.canonical_axes((axis,), x.ndim)
        stored = base_scale_of(base_scale, x.shape[a])
        return {"alpha": jnp.full((x.shape[a],), stored, precision.parameters)}

    def fn(params, x, *, mask, update=None, **context):
        del context
        update = require(update, "ngpt_interpolation", "update", "the block's output")
        stored = params["alpha"].astype(promote(params["alpha"].dtype, x.dtype))
        alpha = ngpt_scale(stored, initial=initial, base_scale=base_scale)
        return ngpt_interpolate(x, update, alpha, axis=axis, mask=mask, precision=precision)

    return stateless(fn, init_params)
