"""The lower bound of a reparametrized parameter, with a gradient that lets a parameter come back from below.

A plain maximum has no gradient below its bound, so a parameter that falls there stays. The rule of Ballé et al. passes
a cotangent where the parameter is at least the bound, or where descent would raise it (the cotangent is negative).
That rule is not linear in the cotangent, so no jvp can transpose to it, and `custom_vjp` would take jvp away. Here a
linear function whose value is zero carries the rule as its transpose: forward mode sees the maximum's own derivative,
reverse mode the rule, and vmap, jit and scan work in both.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def lower_bound(raw: jax.Array, bound: float) -> jax.Array:
    r"""$\max(r, b)$, whose reverse derivative also passes what raises a parameter below the bound.

    Args:
      raw: Parameter of any shape.
      bound: The bound.

    Returns:
      The bounded parameter. A cotangent passes where `raw >= bound` or the cotangent is negative; a tangent passes
      where `raw >= bound` only.

    Raises:
      TypeError: If `raw` is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> falling = jax.grad(lambda raw: nj.lower_bound(raw, 1.0))(0.5)
      >>> rising = jax.grad(lambda raw: -nj.lower_bound(raw, 1.0))(0.5)
      >>> print(falling, rising)
      0.0 -1.0

    References:
      Ballé, Laparra and Simoncelli 2015, [Density Modeling of Images using a Generalized Normalization
      Transformation](https://arxiv.org/abs/1511.06281).
    """
    raw = jnp.asarray(raw)
    if not jnp.issubdtype(raw.dtype, jnp.floating):
        raise TypeError(f"expected a floating parameter to bound, got dtype {raw.dtype}.")
    below = raw < jnp.asarray(bound, raw.dtype)
    # A select and not maximum: at the bound itself maximum halves the derivative.
    return jnp.where(below, jnp.asarray(bound, raw.dtype), raw) + _rescue_p.bind(raw, below)


_rescue_p = Primitive("lower_bound_rescue")


def _rescue(tangent, below):
    del below
    return jnp.zeros_like(tangent)


def _transpose(cotangent, tangent, below):
    del tangent
    if type(cotangent) is ad.Zero:
        return cotangent, None
    return jnp.where(below & (cotangent < 0), cotangent, 0), None


def _jvp(primals, tangents):
    (raw, below), (tangent, _) = primals, tangents
    value = _rescue_p.bind(raw, below)
    return value, tangent if type(tangent) is ad.Zero else _rescue_p.bind(tangent, below)


_rescue_p.def_impl(jax.jit(_rescue))
_rescue_p.def_abstract_eval(lambda tangent, below: tangent)
ad.primitive_jvps[_rescue_p] = _jvp
ad.primitive_transposes[_rescue_p] = _transpose
batching.defbroadcasting(_rescue_p)
mlir.register_lowering(_rescue_p, mlir.lower_fun(_rescue, multiple_results=False))
