"""Any axis as (before, axis, after): what every kernel sees, and the checks that the public calls share."""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Mosaic has no float16 loads on any TPU from v4 to 7x.
KERNEL_DTYPES = {"mosaic_tpu": ("float32", "bfloat16"), "triton": ("float32", "bfloat16", "float16")}


def normalized_axes(x: jax.Array, axis: int | Sequence[int]) -> tuple[int, ...]:
    """Sorted, non-negative, adjacent axes; anything else is an error that names the axes."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"expected a real floating array, got {getattr(x, 'dtype', type(x).__name__)}; cast it first.")
    given = (axis,) if isinstance(axis, int) else tuple(map(operator.index, axis))
    if not given or any(not -x.ndim <= a < x.ndim for a in given):
        raise ValueError(f"axis={axis!r} does not name axes of an array of shape {x.shape}.")
    axes = tuple(sorted(a % x.ndim for a in given))
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ValueError(f"axis={axis!r} must name adjacent axes, each once; transpose the array of shape {x.shape}.")
    if x.size == 0:
        raise ValueError(f"an array of shape {x.shape} has no elements to normalize.")
    return axes


def before_axis_after(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, int, int]:
    """The sizes of what lies before, in and after the axes."""
    first, last = axes[0], axes[-1] + 1
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def check_parameter(name: str, parameter: jax.Array | None, x: jax.Array, axes: tuple[int, ...]) -> None:
    """A parameter has the shape of the axes: nothing is broadcast silently."""
    expected = tuple(x.shape[a] for a in axes)
    if parameter is None:
        return
    if not jnp.issubdtype(parameter.dtype, jnp.floating):
        raise TypeError(f"{name} must be a real floating array, got {parameter.dtype}.")
    if parameter.shape != expected:
        raise ValueError(f"{name} must have the shape {expected} of the normalized axes, got {parameter.shape}.")


def wide(array: jax.Array) -> jax.Array:
    """In float32, or float64 as it is."""
    # jnp.promote_types refuses bfloat16 with float32 under strict promotion.
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def fits_kernel(implementation: str, *arrays: jax.Array | None) -> bool:
    """Whether the kernels can load these arrays and lose nothing by computing in float32."""
    return all(array is None or array.dtype.name in KERNEL_DTYPES[implementation] for array in arrays)


def check_kernel_dtype(implementation: str, *arrays: jax.Array | None) -> None:
    """Any other input needs XLA."""
    if not fits_kernel(implementation, *arrays):
        raise NotImplementedError(
            f"implementation={implementation!r} takes {', '.join(KERNEL_DTYPES[implementation])} and computes in "
            f"float32, got {', '.join(a.dtype.name for a in arrays if a is not None)}; use implementation='xla'."
        )
