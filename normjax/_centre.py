"""The centre of a set of values and the second moment about it, more exactly than one number of the dtype can say.

The first pass gives a mean that is near; the second measures the variance about it and what rounding that mean left
over. How the passes are written decides whether XLA reads the memory twice, as for the textbook's formula, or more.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.reductions import Standardization, means


class Centre(NamedTuple):
    """A mean in two parts, because one number of the dtype cannot hold it; `None` is 0."""

    mean: jax.Array
    high: jax.Array | None = None
    low: jax.Array | None = None

    def subtracted_from(self, values: jax.Array) -> jax.Array:
        """The values minus the mean."""
        centred = values if self.high is None else values - self.high
        return centred if self.low is None else centred - self.low

    def minus(self, other: "Centre") -> jax.Array:
        """The difference of two means, which may be small beside them."""
        high, low = other.subtracted_from(self.mean if self.high is None else self.high), self.low
        return high if low is None else high + low


def central(values, mask, count, spec: Standardization) -> tuple[Centre, jax.Array]:
    """The centre of the values and their second moment about it."""
    if not spec.centre:
        (second,) = means((values * values,), mask, count, spec)
        return Centre(jnp.zeros_like(second)), second
    if mask is None and spec.narrow and jnp.finfo(values.dtype).bits >= 32:
        # What the mean of a narrow input lacks in a wider dtype is far below a rounding of the input.
        near = rounded(_snapped(means((values,), None, count, spec)[0]))
        (second,) = means((jnp.square(values - near),), None, count, spec)
        # Columns: see `_central_by_columns`.
        return Centre(near, rounded(near, 0.5) if by_columns(values, spec) else near), second
    if mask is None and by_columns(values, spec):
        return _central_by_columns(values, count, spec)
    # The first mean only has to be near: it is a constant for autodiff. What it lacks is measured in the second pass.
    near = rounded(jax.lax.stop_gradient(means((values,), mask, count, spec)[0]))
    shifted = values - near
    rest, square = means((shifted, shifted * shifted), mask, count, spec)
    rest = rounded(rest)
    # rest is a rounding error of near, so nothing cancels here; the clip is for constant rows.
    return Centre(near + rest, near, rest), jnp.maximum(square - rest * rest, 0)


def _central_by_columns(values, count, spec: Standardization) -> tuple[Centre, jax.Array]:
    """The same where each look at the values is a read of the memory, two as for the textbook's formula.

    An array of the size of the values that is used twice would be written out by the CPU's compiler. Where one
    difference is needed in two places, two bounds in `rounded` make it two.
    """
    blocks, size = _block_means(values, spec)
    # The sum of the means of all blocks, times the size of one, is that of the values.
    near = rounded(jax.lax.stop_gradient(means((blocks,), None, count, spec)[0] * size))
    # The means of many blocks have independent rounding errors: what they lack together is known better than that of
    # any of them.
    terms = blocks - rounded(near, 0.5), jnp.square(values - near)
    rest, square = means(terms, None, count, spec)
    rest = rounded(rest * size)
    high = rounded(near + rest)
    return Centre(near + rest, high, rest - (high - near)), jnp.maximum(square - rest * rest, 0)


BLOCK = 64
LEAST_BLOCKS = 16  # their rounding errors average to a quarter of one


def _block_means(values, spec: Standardization) -> tuple[jax.Array, int]:
    """Means of blocks of the reduced axes and a block's size; the values themselves and 1 where blocks would be few.

    A block is a line along the last of the axes, or where those are few a part of one.
    """
    if not spec.axes:  # all there is to reduce is a mapped axis
        return values, 1
    *others, along = spec.axes
    lines, length = math.prod(values.shape[a] for a in others), values.shape[along]
    if lines >= LEAST_BLOCKS:
        return jnp.mean(values, axis=along, keepdims=True), length
    # An axis that is explicitly sharded cannot be cut.
    if length % BLOCK == 0 and lines * length >= LEAST_BLOCKS * BLOCK and _is_whole(values, along):
        cut = (*values.shape[:along], -1, BLOCK, *values.shape[along + 1 :])
        return jnp.mean(values.reshape(cut), axis=along + 1), BLOCK
    return values, 1


def _is_whole(values, axis: int) -> bool:
    return jax.typeof(values).sharding.spec[axis] is None


def _snapped(mean: jax.Array) -> jax.Array:
    # Three bits shorter: the mean of equal narrow values, which are on that grid, is then that value exactly. An ulp
    # beside it, epsilon alone would divide the deviation, and a constant column would not give 0.
    # The product's rounding drops the bits (Dekker), whether or not the compiler fuses a product and a difference;
    # `reduce_precision` would keep the CPU's compiler from one pass over a row.
    part = mean / 16  # so that the product stays finite
    product = 9 * part
    return mean + jax.lax.stop_gradient(16 * (product - (product - part)) - mean)


def rounded(mean: jax.Array, share: float = 1.0) -> jax.Array:
    # XLA turns a division by the count into a product with 1 / n, and the compiler fuses that product into `x - mean`
    # in some of the loops that recompute it and not in others. The two then differ by half an ulp of the mean: the very
    # error that the second pass is there to remove. A maximum between product and difference keeps them apart, and
    # unlike a select it can be part of any fusion; the second term makes a mean that is not finite NaN.
    return jnp.maximum(mean, share * float(jnp.finfo(mean.dtype).min)) + 0 * mean


def by_columns(values: jax.Array, spec: Standardization) -> bool:
    # Rows fit into the cache, where a second look at them is free; columns are read from memory each time.
    return values.ndim - 1 not in spec.axes
