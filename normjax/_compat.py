"""What differs between the supported versions of JAX and Flax, and between Flax's rules and ours."""

from typing import Any

import jax.numpy as jnp

from normjax.precision import Precision


def flax_precision(x_dtype: Any, dtype: Any, param_dtype: Any, force_float32_reductions: bool = True) -> Precision:
    """Flax's dtype arguments as a `Precision`.

    Args:
      x_dtype: Dtype of the input.
      dtype: The module's output dtype, or `None` for the promotion of input and parameters.
      param_dtype: Dtype of the parameters.
      force_float32_reductions: Whether statistics are at least float32; otherwise they take the input's dtype.

    Returns:
      The policy.
    """
    return Precision(
        statistics=None if force_float32_reductions else jnp.dtype(x_dtype),
        output="promote" if dtype is None else dtype,
        parameters=param_dtype,
    )
