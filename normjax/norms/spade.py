r"""Spatially-adaptive normalization, SPADE (Park et al. 2019): scale and shift at each position from a label map.

$$y = (1 + k_\gamma * a)\,\text{norm}(x) + k_\beta * a,\qquad a = \text{ReLU}(k * m)$$

$m$ is the context `segmentation=`, one-hot labels or any feature map, resized to $x$ by the nearest rule. The norm is a
value: `instance_norm`, `batch_norm` (whose running statistics are the state) or `group_norm`, each without scale and
bias of its own. SCP-ControlNet's variant is `group_norm(num_groups=32)`, `jax.nn.silu` and as many hidden channels as
features; its released code stores another epsilon than 1e-5 but never uses it, here the norm's own epsilon holds.

Style-joint modulation (SSTAN) makes scale and shift from semantics and style together. That paper gives no public code,
and its equation could not be confirmed; `use_style=True` is the plain reading: the style code from the context `style=`
is appended to the label map at every position.

Nothing folds. Scale invariance is the norm's own: per unit for instance and batch statistics, per group for groups.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.norms._context import check_condition, require
from normjax.norms._conv import check_window, convolve, init_layer
from normjax.norms._inner import apply_inner, check_transform
from normjax.norms._modulate import modulate
from normjax.norms._resize import nearest_resize
from normjax.precision import TORCH, Precision, output_dtype, promote
from normjax.transform import NormTransform


def spade_modulate(
    normalized: jax.Array,
    segmentation: jax.Array,
    params: Mapping[str, Any],
    *,
    style: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    feature_axis: int = -1,
) -> jax.Array:
    r"""Modulation by a label map: $y = (1 + k_\gamma * a)\,\hat x + k_\beta * a$ with $a = f(k * m)$.

    Args:
      normalized: $\hat x$, floating, `(batch, *space, channels)`.
      segmentation: $m$, `(batch or 1, *any space, labels)`, any dtype: one-hot labels or features.
      params: Convolutions `{"hidden", "scale", "bias"}`, each `{"kernel", "bias"}`, kernels `(*window, in, out)`.
      style: `(batch or 1, style)`, appended to the channels of the label map at every position, or `None`.
      activation: $f$.
      feature_axis: Channel axis of both maps; 1 for torch's `(N, C, H, W)`.

    Returns:
      The modulated value, shaped and typed like `normalized`.

    Raises:
      ValueError: If the shapes do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x, labels = jnp.ones((2, 4, 4, 3)), jax.nn.one_hot(jnp.zeros((2, 8, 8), int), 5)
      >>> params, _ = nj.spade(nj.instance_norm(), hidden=8).init(jax.random.key(0), x, segmentation=labels)
      >>> nj.spade_modulate(x, labels, params).shape
      (2, 4, 4, 3)

    References:
      Park et al. 2019, [Semantic Image Synthesis with SPADE](https://arxiv.org/abs/1903.07291).
    """
    (feature,) = _checks.canonical_axes(feature_axis, normalized.ndim, "feature_axis")
    _check_conditions(segmentation, style, normalized.shape)
    dtype = promote(normalized.dtype, jnp.float32)
    space = _checks.other_axes((0, feature), normalized.ndim)
    condition = nearest_resize(jnp.asarray(segmentation), tuple(normalized.shape[a] for a in space), space)
    condition = jnp.moveaxis(condition, feature, -1).astype(dtype)
    if style is not None:
        batch = max(condition.shape[0], style.shape[0])
        code = style.astype(dtype).reshape(style.shape[0], *[1] * len(space), style.shape[1])
        parts = [jnp.broadcast_to(p, (batch, *condition.shape[1:-1], p.shape[-1])) for p in (condition, code)]
        condition = jnp.concatenate(parts, axis=-1)
    hidden = activation(convolve(condition, params["hidden"]))
    scale, shift = (jnp.moveaxis(convolve(hidden, params[name]), -1, feature) for name in ("scale", "bias"))
    return modulate(normalized, scale, shift)


def _check_conditions(segmentation: Any, style: Any, shape: tuple[int, ...]) -> None:
    check_condition("segmentation", segmentation, shape, {0: shape[0]})
    if style is not None and (len(style.shape) != 2 or style.shape[0] not in (1, shape[0])):
        raise ValueError(f"style= has shape {style.shape}; spade expects ({shape[0]} or 1, style features).")


@method(
    "SPADE",
    "Park et al. 2019",
    "1903.07291",
    "vision",
    state=("(mean)", "(var)"),
    context=("segmentation", "(style)"),
    scale_invariance="per unit",
)
def spade(
    norm: NormTransform,
    *,
    hidden: int = 128,
    kernel_size: int = 3,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    use_style: bool = False,
    feature_axis: int = -1,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """SPADE as a transform; reads `segmentation=` (and `style=` if asked to), its state is the norm's.

    Args:
      norm: The norm inside, e.g. `batch_norm(use_scale=False, use_bias=False)`.
      hidden: Channels between the convolutions.
      kernel_size: Odd window of the convolutions.
      activation: Function between them.
      use_style: Whether the context `style=`, `(batch, style)`, joins the label map.
      feature_axis: Channel axis of input and label map; the norm has its own.
      kernel_init, bias_init: Initializers; uniform within 1 / sqrt(fan in), and zeros, by default.
      precision: Dtypes.

    Returns:
      The transform; parameters `{"norm", "hidden", "scale", "bias"}`.

    Raises:
      TypeError: If `norm` is not a transform.
      ValueError: If the window is even, or in use if a condition is missing or does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm = nj.spade(nj.instance_norm(use_scale=False, use_bias=False), hidden=8)
      >>> labels = jax.nn.one_hot(jnp.zeros((2, 8, 8), int), 5)
      >>> params, _ = norm.init(jax.random.key(0), jnp.ones((2, 4, 4, 3)), segmentation=labels)
      >>> params["hidden"]["kernel"].shape, params["scale"]["kernel"].shape
      ((3, 3, 5, 8), (3, 3, 8, 3))

    References:
      Park et al. 2019, [Semantic Image Synthesis with SPADE](https://arxiv.org/abs/1903.07291).
    """
    check_transform("spade", norm)
    check_window(kernel_size)

    def conditions(context, x):
        labels = "one-hot labels or features of shape (batch, *space, labels)"
        segmentation = require(context.get("segmentation"), "spade", "segmentation", labels)
        style = require(context.get("style"), "spade", "style", "of shape (batch, style)") if use_style else None
        _check_conditions(segmentation, style, x.shape)
        return segmentation, style

    def init(rng, x, **context):
        segmentation, style = conditions(context, x)
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        rngs = [None] * 4 if rng is None else jax.random.split(rng, 4)
        inner, state = norm.init(rngs[0], x, **context)
        window = (kernel_size,) * (x.ndim - 2)
        labels = segmentation.shape[feature] + (0 if style is None else style.shape[-1])
        sizes = {"hidden": (labels, hidden), "scale": (hidden, x.shape[feature]), "bias": (hidden, x.shape[feature])}
        params: dict[str, Any] = {"norm": inner}
        for key, (name, size) in zip(rngs[1:], sizes.items(), strict=True):
            params[name] = init_layer(key, (*window, *size), precision.parameters, kernel_init, bias_init)
        return params, state

    def apply(params, state, x, *, train, mask=None, **context):
        segmentation, style = conditions(context, x)
        normalized, state = apply_inner(norm, params["norm"], state, x, train, mask, context, precision)
        y = spade_modulate(
            normalized, segmentation, params, style=style, activation=activation, feature_axis=feature_axis
        )
        return y.astype(output_dtype(x.dtype, (params["scale"]["kernel"],), precision)), state

    return NormTransform(init, apply)
