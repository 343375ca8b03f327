"""What differs between the supported versions of JAX and Flax, and between Flax's rules and ours."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import Precision, promote


def flax_precision(
    x: jax.Array, dtype: Any, parameters: tuple[Any, ...], force_float32_reductions: bool = True
) -> Precision:
    """Flax's dtype arguments as a `Precision`.

    Args:
      x: The input.
      dtype: The module's output dtype, or `None` for the promotion of input and parameters.
      parameters: What takes part in that promotion: arrays, or `None` where there is none.
      force_float32_reductions: Whether statistics are at least float32. They are never narrower than the input or,
        when this is set, than the output: a float64 output of float32 statistics would only look like one.

    Returns:
      The policy.

    Raises:
      TypeError: If `x` or `dtype` is not floating.
    """
    _checks.check_input(x)
    if dtype is None:
        out = promote(x.dtype, *(p.dtype for p in parameters if p is not None))
    else:
        out = jnp.dtype(dtype)
        if not jnp.issubdtype(out, jnp.floating):
            raise TypeError(f"expected a real floating dtype for the output, got dtype={dtype!r}.")
    statistics = promote(x.dtype, out, jnp.float32) if force_float32_reductions else jnp.dtype(x.dtype)
    return Precision(statistics=statistics, output=out)


def flax_axes(axes: _checks.Axes, ndim: int, name: str) -> tuple[int, ...]:
    """Returns axes as a canonical tuple by Flax's rule, which lets the same axis be named twice."""
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    return _checks.canonical_axes(sorted({_checks.canonical_axes(a, ndim, name)[0] for a in given}), ndim, name)


def maximum(x: jax.Array, bound: jax.Array) -> jax.Array:
    """`jnp.maximum(x, bound)` for a bound of sizes 1 that broadcasts to `x`, also where `x` is explicitly sharded.

    JAX 0.12 broadcasts the smaller operand inside the derivative, without the sharding of the larger one, and then
    refuses the result.
    """
    axes = tuple(range(x.ndim))
    return jnp.maximum(x, jax.lax.broadcast_in_dim(bound, x.shape, axes, out_sharding=jax.typeof(x).sharding))
