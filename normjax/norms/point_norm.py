r"""Point functions in the place of a norm: each value by itself through a bounded odd function.

$$y = \gamma \odot f(\alpha x + s) + \beta$$

$\alpha$ and $s$ are learned scalars. DyT (`dyt`) has $f = \tanh$ and no $s$, Derf (`derf`) has $f = \mathrm{erf}$; the
other functions that Derf's authors compared are in `point_functions`. There are no statistics and no state; a mask
marks values that must not matter. Nothing before it is scale-invariant: a network of point functions has no effective
learning rate to speak of. Only $\gamma$ and $\beta$ fold, into the next layer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine, affine_inits, init_affine
from normjax.precision import TORCH, Precision, promote, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless

PointFunction = Callable[[jax.Array], jax.Array]


def point_normalize(
    x: jax.Array,
    function: PointFunction,
    alpha: jax.Array | None = None,
    shift: jax.Array | None = None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: _checks.Axes = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""A point function of an array: $y = \gamma f(\alpha x + s) + \beta$.

    Args:
      x: Floating array of any shape.
      function: $f$, e.g. `jnp.tanh` or `nj.point_functions.arctan`; maps an array to one of the same shape.
      alpha: $\alpha$, one number as `()` or `(1,)`, or `None` for 1.
      shift: $s$, likewise, or `None` for 0.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      feature_axes: Axes on which scale and bias live; 1 for torch's `(N, C, H, W)`.
      mask: Broadcastable to `x`; what is not finite at its zeros is taken as 0.
      precision: Dtypes. By default float32 throughout and one rounding; the published code rounds each step to the
        input's dtype, which `Precision(statistics=x.dtype)` does.

    Returns:
      The output, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating, or `function` cannot be called.
      ValueError: If the mask or a parameter does not fit, or the function changes the shape.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.point_normalize(jnp.array([-3.0, 1.0]), nj.point_functions.smoothsign))
      [-0.75  0.5 ]

    References:
      Zhu et al. 2025, [Transformers without Normalization](https://arxiv.org/abs/2503.10622); Chen et al. 2025,
      [Stronger Normalization-Free Transformers](https://arxiv.org/abs/2512.10938).
    """
    _check_function(function)
    _checks.check_input(x)
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    values, _ = prepare(x, mask, statistics_dtype(x.dtype, precision))
    # In a narrow dtype each step is rounded, and yet computed wide: its derivative has more steps, and the gradients of
    # the two scalars are sums over all values.
    dtype, wide = values.dtype, promote(values.dtype, jnp.float32)
    values = values.astype(wide)
    if alpha is not None:
        values = (values * _number("alpha", alpha, wide)).astype(dtype).astype(wide)
    if shift is not None:
        values = (values + _number("shift", shift, wide)).astype(dtype).astype(wide)
    y = function(values).astype(dtype)
    if y.shape != x.shape:
        raise ValueError(f"function made shape {y.shape} of an input of shape {x.shape}; it must keep the shape.")
    return affine(y, x, scale, bias, features, precision)


def _number(name: str, parameter: jax.Array, dtype) -> jax.Array:
    if parameter.size != 1:
        raise ValueError(f"expected {name} to be one number, of shape () or (1,), got shape {parameter.shape}.")
    return parameter.reshape(()).astype(dtype)


def _check_function(function: PointFunction) -> None:
    if not callable(function):
        raise TypeError(f"expected a function such as nj.point_functions.arctan or jnp.tanh, got {function!r}.")


@method("Point function", "Chen et al. 2025", "2512.10938", "pointwise", folds="affine")
def point_norm(
    function: PointFunction,
    *,
    alpha_init: float = 0.5,
    shift_init: float = 0.0,
    feature_axes: _checks.Axes = -1,
    use_shift: bool = True,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""A point function as a transform; parameters `{"alpha", "shift", "scale", "bias"}`, no state.

    Args:
      function: $f$, e.g. `nj.point_functions.arctan`.
      alpha_init, shift_init: Initial $\alpha$ and $s$, learned scalars.
      feature_axes, precision: As in `point_normalize`.
      use_shift, use_scale, use_bias: Whether there is a shift, a scale, and a bias.
      scale_init, bias_init: Initializers; ones and zeros by default.

    Returns:
      The transform.

    Raises:
      TypeError: If `function` cannot be called.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.point_norm(nj.point_functions.isru).init(None, jnp.ones((2, 3)))
      >>> print(params["alpha"], params["shift"], params["scale"])
      0.5 0.0 [1. 1. 1.]

    References:
      Chen et al. 2025, [Stronger Normalization-Free Transformers](https://arxiv.org/abs/2512.10938).
    """
    _check_function(function)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias)
    numbers = {"alpha": alpha_init} | ({"shift": shift_init} if use_shift else {})

    def init_params(rng, x, **context):
        del context
        features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
        params = init_affine(rng, tuple(x.shape[a] for a in features), precision, *inits)
        return {name: jnp.full((), value, precision.parameters) for name, value in numbers.items()} | params

    def fn(params, x, *, mask, **context):
        del context
        named = (params.get(name) for name in ("alpha", "shift", "scale", "bias"))
        return point_normalize(x, function, *named, feature_axes=feature_axes, mask=mask, precision=precision)

    return stateless(fn, init_params)
