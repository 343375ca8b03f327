r"""nGPT's normalized queries and keys (Loshchilov et al. 2024), and how nGPT stores its scales.

$$q \leftarrow s_{qk} \odot \frac{q}{\|q\|_2},\qquad s = \theta\,\frac{\text{initial}}{b},\ \theta_0 = b = 1/\sqrt d$$

Every vector of scales is stored as $\theta$, so that an Adam step of a fixed size moves it by a fixed share. Queries
and keys of a layer share $s_{qk}$ (per head, after the rotation): give `qk_normalize` the same function twice. The
softmax scale is then $\sqrt{d_{head}}$, not its inverse. After each step the matrices are projected onto the sphere
along the embedding axis, with `l2_normalize(w, axis=..., epsilon=0.0)`.

The authors normalize without epsilon, which is NaN at a zero vector; here that gives 0. No state. Weights that feed it
are jointly scale-invariant.
"""

import functools
import math

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import default_init, init_affine
from normjax.norms.l2_norm import l2_normalize
from normjax.precision import TORCH, Precision, promote
from normjax.transform import NormTransform, stateless


def ngpt_scale(stored: jax.Array, *, initial: float, base_scale: float | None = None) -> jax.Array:
    r"""The scale in use, $\theta \cdot (\text{initial} / b)$, of a stored one.

    Args:
      stored: $\theta$, any shape; it starts at $b$.
      initial: Its value in use at the start.
      base_scale: $b$; `None` is $1/\sqrt{\text{size}}$.

    Returns:
      The scale in at least float32.

    Raises:
      ValueError: If the base scale is not positive.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.ngpt_scale(jnp.full(4, 0.5), initial=0.05).round(3))
      [0.05 0.05 0.05 0.05]

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    wide = stored.astype(promote(stored.dtype, jnp.float32))
    return wide * (initial / base_scale_of(base_scale, stored.size))


@method(
    "nGPT's scaled unit vector",
    "Loshchilov et al. 2024",
    "2410.01131",
    "token",
    folds="affine",
    scale_invariance="joint",
)
def ngpt_norm(
    *,
    axis: int = -1,
    feature_axes: _checks.Axes | None = None,
    initial: float = 1.0,
    base_scale: float | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""$s \odot x / \|x\|$ with nGPT's stored scale; parameters `{"scale"}`, no state.

    Args:
      axis: The axis of the norm, that of a head's features.
      feature_axes: Axes of the scale, e.g. `(-2, -1)` for heads and their features; `None` means `axis`.
      initial, base_scale: As in `ngpt_scale`.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If the base scale is not positive.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, q = nj.ngpt_norm(feature_axes=(-2, -1)), jnp.ones((2, 3, 4, 4))
      >>> params, state = norm.init(None, q)
      >>> print(params["scale"].shape, norm.apply(params, state, q, train=True)[0][0, 0, 0])
      (4, 4) [0.5 0.5 0.5 0.5]

    References:
      Loshchilov et al. 2024, [nGPT](https://arxiv.org/abs/2410.01131).
    """
    base_scale_of(base_scale, 1)
    axes, name = (axis, "axis") if feature_axes is None else (feature_axes, "feature_axes")

    def init_params(rng, x, **context):
        del context
        shape = tuple(x.shape[a] for a in _checks.canonical_axes(axes, x.ndim, name))
        stored = default_init(None, base_scale_of(base_scale, math.prod(shape)))
        return init_affine(rng, shape, precision, stored, None)

    normalize = functools.partial(l2_normalize, axis=axis, feature_axes=feature_axes, epsilon=0.0, precision=precision)

    def fn(params, x, *, mask, **context):
        del context
        stored = params["scale"].astype(promote(params["scale"].dtype, x.dtype))
        return normalize(x, ngpt_scale(stored, initial=initial, base_scale=base_scale), mask=mask)

    return stateless(fn, init_params)


def base_scale_of(base_scale: float | None, size: int) -> float:
    """Returns the value that nGPT stores for a scale of that size: `base_scale`, or one over the root of the size."""
    if base_scale is not None and not base_scale > 0:
        raise ValueError(f"expected base_scale > 0, got base_scale={base_scale!r}.")
    return size**-0.5 if base_scale is None else base_scale
