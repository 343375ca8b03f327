r"""The functions that Derf's authors compared (Chen et al. 2025), for `point_norm`; tanh and erf are JAX's own.

All are odd and bounded by 1. They are written so that no power of a large argument overflows, small arguments keep
their digits, and the derivative at 0 is the function's own. The published form $\mathrm{sgn}(x) g(|x|)$ differentiates
to 0 there where $g'(0)$ is 1, and to NaN where it is infinite (`exproot`, `power23_clip`: 0 here). Where a clip begins,
the derivative is that of the inside.

Example:
  >>> import jax, jax.numpy as jnp, normjax as nj
  >>> print(nj.point_functions.logsign_clip(jnp.array([-9.0, 0.5])).round(2), jax.grad(nj.point_functions.expsign)(0.0))
  [-1.   0.41] 1.0
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def arctan(x: jax.Array) -> jax.Array:
    r"""$\frac{2}{\pi} \arctan x$."""
    return jnp.arctan(x) * (2 / np.pi)


def isru(x: jax.Array) -> jax.Array:
    r"""Inverse square root unit, $x / \sqrt{1 + x^2}$."""
    ratio, unit = _ratio(x)
    return ratio / jnp.sqrt(ratio**2 + unit**2)


def relsign(x: jax.Array) -> jax.Array:
    r"""$x / (1 + \sqrt{1 + x^2})$."""
    ratio, unit = _ratio(x)
    return ratio / (unit + jnp.sqrt(ratio**2 + unit**2))


def cubsign(x: jax.Array) -> jax.Array:
    r"""$x^3 / (1 + |x|^3)$."""
    ratio, unit = _ratio(x)
    return ratio**3 / (unit**3 + jnp.abs(ratio) ** 3)


def smoothsign(x: jax.Array) -> jax.Array:
    r"""$x / (1 + |x|)$."""
    return x / (1 + jnp.abs(x))


def smoothsign_clip(x: jax.Array) -> jax.Array:
    r"""$\mathrm{clip}(x / (1 + |x|))$; the clip only ever meets a rounding."""
    return _clip(smoothsign(x))


def expsign(x: jax.Array) -> jax.Array:
    r"""$\mathrm{sgn}(x) (1 - e^{-|x|})$."""
    return _odd(lambda a: -jnp.expm1(-a), x)


def exproot(x: jax.Array) -> jax.Array:
    r"""$\mathrm{sgn}(x) (1 - e^{-\sqrt{|x|}})$."""
    return _odd(lambda a: -jnp.expm1(-_power(a, 0.5)), x)


def saturlog(x: jax.Array) -> jax.Array:
    r"""$\mathrm{sgn}(x) \ln(1 + |x|) / (1 + \ln(1 + |x|))$."""
    return _odd(lambda a: smoothsign(jnp.log1p(a)), x)


def satursin(x: jax.Array) -> jax.Array:
    r"""$\sin(\mathrm{clip}(x, \pm\pi/2))$."""
    return jnp.sin(jnp.clip(x, -np.pi / 2, np.pi / 2))


def linear_clip(x: jax.Array) -> jax.Array:
    r"""$\mathrm{clip}(x)$ to $\pm 1$."""
    return _clip(x)


def logsign_clip(x: jax.Array) -> jax.Array:
    r"""$\mathrm{clip}(\mathrm{sgn}(x) \ln(1 + |x|))$."""
    return _clip(_odd(jnp.log1p, x))


def logquad_clip(x: jax.Array) -> jax.Array:
    r"""$\mathrm{clip}(\mathrm{sgn}(x) \ln(1 + x^2))$."""
    # Beyond 2 it is clipped anyway, and the square would overflow.
    return _clip(_odd(lambda a: jnp.log1p(jnp.minimum(a, 2) ** 2), x))


def power23_clip(x: jax.Array) -> jax.Array:
    r"""$\mathrm{clip}(\mathrm{sgn}(x) |x|^{2/3})$."""
    return _clip(_odd(lambda a: _power(a, 2 / 3), x))


_SMOOTH = (arctan, isru, relsign, cubsign, smoothsign, expsign, exproot, saturlog)
_CLIPPED = (satursin, smoothsign_clip, linear_clip, logsign_clip, logquad_clip, power23_clip)
FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {f.__name__: f for f in (*_SMOOTH, *_CLIPPED)}


def _ratio(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # x and 1 in the unit max(|x|, 1). A function that is homogeneous in the two does not depend on the unit, which is
    # therefore a constant for autodiff.
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(x), 1))
    return x / unit, 1 / unit


def _odd(g: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
    return sign * g(sign * x)


def _clip(y: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(y) <= 1, y, jnp.sign(y))


def _power(a: jax.Array, exponent: float) -> jax.Array:
    positive = a > 0
    return jnp.where(positive, jnp.where(positive, a, 1) ** exponent, 0)
