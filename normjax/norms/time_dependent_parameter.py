"""A parameter that is a function of time, as time-dependent normalization has them (Liu et al. 2024, DiMR)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from normjax.precision import promote, statistics_dtype


def time_dependent_parameter(
    parameter: Mapping[str, jax.Array], time: jax.Array, *, time_scale: float = 0.25
) -> jax.Array:
    r"""The value of a time-dependent parameter: $p_1 + \sigma((u+1) k t + b)(p_0 - p_1)$.

    Args:
      parameter: `{"p0", "p1", "u", "b"}`, each of shape `(features,)`.
      time: $t$, a number or an array of any shape, one entry for each sample.
      time_scale: $k$; 0.25 where `time` is the log signal-to-noise ratio, 1 where it is $\tau$ itself.

    Returns:
      An array of shape `(*time.shape, features)`, at least float32.

    Raises:
      KeyError: If one of the four entries is missing.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> p = {"p0": jnp.ones(1), "p1": jnp.zeros(1), "u": jnp.zeros(1), "b": jnp.zeros(1)}
      >>> print(nj.time_dependent_parameter(p, jnp.array([-4.0, 0.0, 4.0])).T)
      [[0.26894143 0.5        0.7310586 ]]

    References:
      Liu et al. 2024, [Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and
      Time-Dependent Layer Normalization](https://arxiv.org/abs/2406.09416).
    """
    time = jnp.asarray(time)
    dtype = statistics_dtype(promote(time.dtype, parameter["p0"].dtype))
    over = tuple(range(time.ndim))
    p0, p1, u, b = (jnp.expand_dims(parameter[name].astype(dtype), over) for name in ("p0", "p1", "u", "b"))
    tau = jnp.asarray(time_scale, dtype) * time.astype(dtype)[..., None]
    return p1 + jax.nn.sigmoid((u + 1) * tau + b) * (p0 - p1)
