r"""Time-dependent layer and RMS normalization (Liu et al. 2024, DiMR): every affine parameter is a function of time.

$$\theta(t) = p_1 + \sigma\big((u + 1)\,\tau + b\big) \odot (p_0 - p_1),\qquad
y = \gamma(t) \odot \hat x + \beta(t),\quad \tau = k\,t$$

Each of $\gamma, \beta$ holds four vectors: $p_0, p_1$ start as the plain parameter (1 or 0), $u, b$ at 0. In the
authors' code $t$ is the log signal-to-noise ratio and $k = 1/4$; the paper writes $u, b$ as scalars, the code has
vectors. That is 4d or 8d parameters, where adaLN has $2d\,d_c$. Leave $u, b$ out of weight decay: decayed, they forget
time. Released models use the RMS form, epsilon 1e-8 outside the root, and the layer form for upsampling and output.

No state. One row of parameters for each entry of `time`; equal times need no path of their own. Weights that feed it
are scale-invariant up to epsilon; scale and bias move with time, so nothing folds.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._context import require
from normjax.norms._modulate import along_features, at_least
from normjax.norms.layer_norm import layer_normalize
from normjax.norms.rms_norm import rms_normalize
from normjax.norms.time_dependent_parameter import time_dependent_parameter
from normjax.precision import TORCH, EpsilonMode, Precision, scale_shift_cast, statistics_dtype
from normjax.transform import NormTransform, stateless


def _time_dependent(
    name: str,
    normalize: Callable[..., jax.Array],
    axis: int,
    epsilon: float,
    epsilon_mode: EpsilonMode,
    use_bias: bool,
    time_scale: float,
    precision: Precision,
) -> NormTransform:
    _checks.check_epsilon(epsilon)
    start = {"scale": 1, "bias": 0} if use_bias else {"scale": 1}
    needed = name, "time", "one entry for each sample (or token), or one number for all"

    def init_params(rng, x, time=None, **context):
        del rng, context
        require(time, *needed)
        shape = (x.shape[_checks.canonical_axes(axis, x.ndim)[0]],)
        full = functools.partial(jnp.full, shape, dtype=precision.parameters)
        return {k: {"p0": full(v), "p1": full(v), "u": full(0), "b": full(0)} for k, v in start.items()}

    def fn(params, x, *, mask, time=None, **context):
        del context
        wide, time = statistics_dtype(x.dtype, precision), at_least(require(time, *needed), x)
        unrounded = Precision(statistics=wide, output=wide)
        normalized = normalize(x, axis=axis, epsilon=epsilon, epsilon_mode=epsilon_mode, mask=mask, precision=unrounded)
        now = {k: time_dependent_parameter(params[k], time, time_scale=time_scale) for k in start}
        now = {k: along_features(value, x, axis, "time") for k, value in now.items()}
        return scale_shift_cast(normalized, now["scale"], now.get("bias"), x.dtype, precision)

    return stateless(fn, init_params)


_FACTS = {"context": ("time",), "scale_invariance": "joint"}


@method("Time-dependent layer normalization", "Liu et al. 2024", "2406.09416", "conditional", **_FACTS)
def time_dependent_layer_norm(
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "inside",
    use_bias: bool = True,
    time_scale: float = 0.25,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""Layer normalization whose scale and bias are functions of time: $y = \gamma(t)\,\hat x + \beta(t)$.

    Parameters `{"scale", "bias"}`, each `{"p0", "p1", "u", "b"}`; context `time=`; no state.

    Args:
      axis: The feature axis, over which statistics are taken and on which the parameters live.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits.
      use_bias: Whether there is a bias.
      time_scale: Times `time` is $\tau$: 0.25 for the log signal-to-noise ratio, 1 for $\tau$ itself.
      precision: Dtypes and cast order.

    Returns:
      The transform; its `time=` has one entry for each sample (or token), or is one number for all.

    Raises:
      ValueError: If epsilon is negative, or time is missing or does not fit the input.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, log_snr = jnp.array([[1.0, 3.0]]), jnp.zeros(1)
      >>> norm = nj.time_dependent_layer_norm()
      >>> params, _ = norm.init(None, x, time=log_snr)
      >>> print(norm.apply(params, {}, x, train=True, time=log_snr)[0].round(3))
      [[-1.  1.]]

    References:
      Liu et al. 2024, [DiMR](https://arxiv.org/abs/2406.09416).
    """
    name = "time_dependent_layer_norm"
    return _time_dependent(name, layer_normalize, axis, epsilon, epsilon_mode, use_bias, time_scale, precision)


@method("Time-dependent RMS normalization", "Liu et al. 2024", "2406.09416", "conditional", **_FACTS)
def time_dependent_rms_norm(
    *,
    axis: int = -1,
    epsilon: float = 1e-8,
    epsilon_mode: EpsilonMode = "outside",
    use_bias: bool = False,
    time_scale: float = 0.25,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""RMS normalization whose scale is a function of time: $y = \gamma(t)\,x / (\sqrt{\langle x^2\rangle}+\epsilon)$.

    Parameters `{"scale"}` (and `"bias"` if asked for), each `{"p0", "p1", "u", "b"}`; context `time=`; no state.

    Args:
      epsilon, epsilon_mode: 1e-8 outside the root in the authors' code.
      axis, use_bias, time_scale, precision: As in `time_dependent_layer_norm`.

    Returns:
      The transform; its `time=` has one entry for each sample (or token), or is one number for all.

    Raises:
      ValueError: If epsilon is negative, or time is missing or does not fit the input.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.time_dependent_rms_norm()
      >>> params, _ = norm.init(None, jnp.ones((2, 4)), time=jnp.zeros(2))
      >>> sorted(params["scale"])
      ['b', 'p0', 'p1', 'u']

    References:
      Liu et al. 2024, [DiMR](https://arxiv.org/abs/2406.09416).
    """
    name = "time_dependent_rms_norm"
    return _time_dependent(name, rms_normalize, axis, epsilon, epsilon_mode, use_bias, time_scale, precision)
