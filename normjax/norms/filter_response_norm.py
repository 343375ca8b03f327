r"""Filter response normalization with its thresholded linear unit (Singh and Krishnan 2020).

$$y = \max\Big(\gamma \odot \frac{x}{\sqrt{\langle x^2\rangle_{wh} + \epsilon}} + \beta,\ \tau\Big),\qquad
\epsilon = \epsilon_0\ \text{or}\ \epsilon_0 + |\epsilon_l|$$

Each channel of each instance is divided by its root mean square over the spatial axes; nothing is centred, which is why
the threshold $\tau$ is learned. On 1x1 maps the quotient is a smoothed sign of x whose width is $\epsilon$: there the
paper learns $\epsilon_l$. No state. Weights that feed it are scale-invariant channel by channel, up to epsilon; behind
the threshold nothing folds.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._compat import maximum
from normjax._method import method
from normjax.moments import standardize, variance
from normjax.norms._affine import Initializer, affine, affine_inits, default_init, init_affine
from normjax.norms._axes import spatial_axes
from normjax.precision import TORCH, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform, stateless


def filter_response_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    tau: jax.Array | None = None,
    learned_epsilon: jax.Array | None = None,
    *,
    feature_axis: int = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Filter response normalization: $y = \max(\gamma x / \sqrt{\langle x^2\rangle + \epsilon} + \beta, \tau)$.

    Args:
      x: Floating array with batch axis 0, a feature axis and at least one spatial axis.
      scale: $\gamma$, `(channels,)`, or `None` for 1.
      bias: $\beta$, `(channels,)`, or `None` for 0.
      tau: $\tau$, `(channels,)`, or `None` for no threshold.
      learned_epsilon: $\epsilon_l$, `(channels,)`, or `None`; its absolute value is added to `epsilon`.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number; timm has 1e-5.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the spatial axes are sharded.
      precision: Dtypes and cast order.

    Returns:
      The output, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If no spatial axis is left, or mask, parameters or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[[-3.0], [3.0]]])
      >>> print(nj.filter_response_normalize(x, tau=jnp.array([-0.5]))[..., 0].round(3))
      [[-0.5  1. ]]

    References:
      Singh and Krishnan 2020, [Filter Response Normalization Layer](https://arxiv.org/abs/1911.09737).
    """
    (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
    axes = spatial_axes(x.ndim, feature, 0, axis_name)
    spec = standardization(x, axes, epsilon=epsilon, centre=False, axis_name=axis_name)
    values, mask = prepare(x, mask, statistics_dtype(x.dtype, precision))
    normalized, moments = standardize(values, mask, spec)
    own = {"tau": tau, "learned_epsilon": learned_epsilon}
    for name, p in own.items():
        _checks.check_parameter(name, p, x.shape, (x.shape[feature],))
    tau, learned = (None if p is None else _checks.broadcast_to_features(p, (feature,), x.ndim) for p in own.values())
    if learned is not None:
        second = variance(moments) + jnp.abs(learned).astype(values.dtype)
        normalized = values * inverse_root(second, epsilon)
    y = affine(normalized, x, scale, bias, (feature,), precision)
    # Rounding is monotone: the threshold may follow it.
    return y if tau is None else maximum(y, tau.astype(y.dtype))


@method(
    "Filter response normalization, thresholded linear unit",
    "Singh and Krishnan 2020",
    "1911.09737",
    "vision",
    scale_invariance="per unit",
)
def filter_response_norm(
    *,
    feature_axis: int = -1,
    epsilon: float = 1e-6,
    learn_epsilon: bool = False,
    use_threshold: bool = True,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    tau_init: Initializer | None = None,
    epsilon_init: Initializer | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Filter response normalization as a transform; parameters `{"scale", "bias", "tau"}`, no state.

    Args:
      feature_axis, epsilon, axis_name, precision: As in `filter_response_normalize`.
      learn_epsilon: Whether the absolute value of a learned `"epsilon"` is added to it, for 1x1 maps.
      use_threshold: Whether there is a threshold; without, another activation may follow in a `chain`.
      scale_init, bias_init: Initializers; ones and zeros by default.
      tau_init: Initializer of the threshold; zeros by default, with which it starts as a ReLU.
      epsilon_init: Initializer of the learned epsilon; 1e-4 by default.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.filter_response_norm(learn_epsilon=True).init(None, jnp.ones((2, 1, 1, 4)))
      >>> sorted(params)
      ['bias', 'epsilon', 'scale', 'tau']

    References:
      Singh and Krishnan 2020, [Filter Response Normalization Layer](https://arxiv.org/abs/1911.09737).
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, bias_init)
    further = {"tau": default_init(tau_init, 0.0)} if use_threshold else {}
    further |= {"epsilon": default_init(epsilon_init, 1e-4)} if learn_epsilon else {}

    def init_params(rng, x, **context):
        del context
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        spatial_axes(x.ndim, feature, 0, axis_name)
        shape = (x.shape[feature],)
        rngs = [None] * 3 if rng is None else jax.random.split(rng, 3)
        params = init_affine(rngs[0], shape, precision, *inits)
        for (name, init), key in zip(further.items(), rngs[1:], strict=False):
            params[name] = init(key, shape, precision.parameters)
        return params

    def fn(params, x, *, mask, **context):
        del context
        own = (params.get(name) for name in ("scale", "bias", "tau", "epsilon"))
        options = {"feature_axis": feature_axis, "epsilon": epsilon, "axis_name": axis_name, "precision": precision}
        return filter_response_normalize(x, *own, mask=mask, **options)

    return stateless(fn, init_params)
