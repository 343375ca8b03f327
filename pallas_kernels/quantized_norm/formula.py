r"""The mathematics of the quantized RMS norm, once for XLA, TPU and GPU.

With $v = x w$ and $m = \max_i |v_i|$ the row's scale is $s = r m / q$, where $r$ is the reciprocal root and $q$ the
largest number of the dtype, and the values are $v\,q / m$ rounded: the root cancels in them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

# The largest |v| of a row of zeros: q over it and it over q are still float32 numbers.
LEAST = 1e-30
DTYPES = ("int8", "float8_e4m3fn", "float8_e5m2")


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Static settings.

    Attributes:
      axes: Sorted adjacent axes that form a row.
      epsilon: Under the root.
      scale_offset: Added to the scale.
      dtype: Of the values, by name.
      interpret: Whether kernels run in Pallas's interpreter.
    """

    axes: tuple[int, ...]
    epsilon: float
    scale_offset: float
    dtype: str
    interpret: object = False

    @property
    def largest(self) -> float:
        """The largest number of the dtype; -128 of int8 has no opposite and is not used."""
        dtype = jnp.dtype(self.dtype)
        return float(jnp.iinfo(dtype).max if dtype == jnp.int8 else jnp.finfo(dtype).max)


def scales(settings: Quantized, n: int, square: jax.Array, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(row_scale, factor)` of rows of `n` features from Σx² and max|v|; the factor turns v into values."""
    largest = jnp.maximum(largest, LEAST)
    rstd = jax.lax.rsqrt(square * (1 / n) + settings.epsilon)
    return largest * rstd * (1 / settings.largest), settings.largest / largest


def values(
    settings: Quantized, v: jax.Array, factor: jax.Array, rounded: Callable[[jax.Array], jax.Array] = jnp.round
) -> jax.Array:
    """The values, in their dtype."""
    q = v * factor
    q = rounded(q) if settings.dtype == "int8" else q
    # The product may exceed the largest number by its own rounding, and a narrow float has no number there.
    return jnp.clip(q, -settings.largest, settings.largest).astype(settings.dtype)
