r"""Scalable softmax (Nakanishi 2025): attention that does not fade as the number of keys grows.

$$\text{SSMax}(z)_j = \frac{n^{s z_j}}{\sum_i n^{s z_i}} = \text{softmax}(s \log n \cdot z)_j$$

with $n$ the number of keys that the query sees and $s$ learned for each head. The cheap form multiplies the queries by
$s \log n$ and leaves the softmax, hence any fused attention kernel, as it is; `scalable_softmax` is the whole. (A port
that *adds* $s \log n$ to the logits changes nothing: a constant cancels.) Llama 4's `relative_temperature` is its fixed
relative. No state. Not scale-invariant.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine_params, default_init
from normjax.norms._context import require
from normjax.precision import TORCH, Precision, promote, scale_shift_cast, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


def visible_keys(mask: jax.Array) -> jax.Array:
    """Counts the keys that each query sees.

    Args:
      mask: Attention mask of any dtype, `(..., queries, keys)`; zero hides a key. Its last axis must be whole.

    Returns:
      Integer counts `(..., queries, 1)`, which broadcast to queries `(batch, heads, queries, head_dim)`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.visible_keys(jnp.tril(jnp.ones((3, 3))))[:, 0])
      [1 2 3]
    """
    return jnp.sum(jnp.asarray(mask).astype(bool), axis=-1, keepdims=True, dtype=jnp.int32)


def ssmax_scale(
    q: jax.Array, scale: jax.Array, visible: jax.Array, *, head_axis: int, precision: Precision = TORCH
) -> jax.Array:
    r"""Multiplies queries (or logits) by $s_h \log n_i$.

    Args:
      q: Floating array with an axis of heads.
      scale: $s$, of shape `(heads,)`.
      visible: $n$, broadcastable to `q`, integer or floating; 0 counts as 1, whose logarithm is 0.
      head_axis: The axis of heads.
      precision: Dtypes.

    Returns:
      The scaled array, shaped like `q`.

    Raises:
      TypeError: If `q` is not floating.
      ValueError: If scale or counts do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> q, visible = jnp.ones((2, 3, 8)), jnp.array([[1], [2], [3]])  # heads, queries, head_dim
      >>> y = nj.ssmax_scale(q, jnp.array([0.4, 1.0]), visible, head_axis=0)
      >>> bool(jnp.allclose(y[1, :, 0], jnp.log(jnp.array([1.0, 2.0, 3.0]))))
      True

    References:
      Nakanishi 2025, [Scalable-Softmax Is Superior for Attention](https://arxiv.org/abs/2501.19399).
    """
    axes = _checks.canonical_axes((head_axis,), q.ndim, "head_axis")
    _checks.check_input(q)
    _checks.check_parameter("scale", scale, q.shape, (q.shape[axes[0]],))
    if visible.ndim > q.ndim or any(a not in (1, b) for a, b in zip(visible.shape[::-1], q.shape[::-1], strict=False)):
        raise ValueError(f"visible of shape {tuple(visible.shape)} does not broadcast to {tuple(q.shape)}.")
    wide = promote(statistics_dtype(q.dtype, precision), scale.dtype)
    counts = jnp.maximum(visible.astype(wide), 1).reshape((1,) * (q.ndim - visible.ndim) + visible.shape)
    factor = _checks.broadcast_to_features(scale.astype(wide), axes, q.ndim) * jnp.log(counts)
    return scale_shift_cast(q.astype(wide), factor, None, q.dtype, precision)


@method("Scalable softmax", "Nakanishi 2025", "2501.19399", "token", context=("visible",))
def ssmax(*, head_axis: int, scale_init: Initializer | None = None, precision: Precision = TORCH) -> NormTransform:
    """Scalable softmax as a transform of the queries; parameters `{"scale"}` of shape `(heads,)`, no state.

    Args:
      head_axis: The axis of heads of the queries.
      scale_init: Initializer of the scale; by default 0.43, the value that the paper's figure fits.
      precision: Dtypes.

    Returns:
      The transform; its context `visible=` counts the keys each query sees, broadcastable to the queries.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, q = nj.ssmax(head_axis=1), jnp.ones((2, 4, 3, 8))
      >>> params, state = norm.init(None, q)
      >>> visible = nj.visible_keys(jnp.tril(jnp.ones((3, 3))))
      >>> y, state = norm.apply(params, state, q, train=True, visible=visible)

    References:
      Nakanishi 2025, [Scalable-Softmax Is Superior for Attention](https://arxiv.org/abs/2501.19399).
    """

    def fn(params, x, *, mask, visible=None, **context):
        del context
        visible = jnp.asarray(require(visible, "ssmax", "visible", "the number of keys each query sees"))
        values, _ = prepare(x, mask, x.dtype)
        return ssmax_scale(values, params["scale"], visible, head_axis=head_axis, precision=precision)

    inits = default_init(scale_init, 0.43), None
    return stateless(fn, affine_params((head_axis,), "head_axis", precision, inits))
