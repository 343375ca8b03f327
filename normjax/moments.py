r"""Statistics as a mergeable triple (count, mean, M2), and the one standardization that every norm calls.

Two sets of values with triples $(n_a, \mu_a, M_a)$ and $(n_b, \mu_b, M_b)$ have together
$n = n_a + n_b$, $\mu = (n_a \mu_a + n_b \mu_b)/n$, $M = M_a + M_b + (\mu_a-\mu_b)^2 n_a n_b / n$
(Chan, Golub and LeVeque 1979). Merging by counts is what makes masks, unequal shards and empty shards exact.

The variance is always the corrected two-pass one, never $E[x^2]-E[x]^2$: for inputs around 1000 with a spread
of 0.1 the latter is wrong by hundreds in float32. The second pass also measures what rounding the mean left
over, and takes it out of the centred value.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from normjax import _checks
from normjax.precision import EpsilonMode, inverse_root, statistics_dtype, tangent_gain

AxisName = Hashable | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a set of values; reduced axes are kept with size 1.

    Attributes:
      count: Number of values, float, broadcastable to `mean`. 0 for an empty (fully masked) set.
      mean: Their mean; 0 for an empty set.
      m2: Sum of squared deviations from the mean.
    """

    count: jax.Array
    mean: jax.Array
    m2: jax.Array


def variance(moments: Moments, ddof: int = 0) -> jax.Array:
    r"""$M_2 / (n - \text{ddof})$, and 1 for an empty set, so that normalizing nothing changes nothing.

    Args:
      moments: The triple.
      ddof: 0 for the biased variance, 1 for the unbiased one. Where `count <= ddof` (one value) the sum is
        divided by 1 and the result is 0, not NaN.

    Returns:
      The variance, shaped like `moments.mean`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.variance(nj.compute_moments(jnp.array([[1.0, 2.0, 6.0]]), axis=-1), ddof=1)
      Array([[7.]], dtype=float32)
    """
    divisor = jnp.maximum(moments.count - ddof, 1)
    return jnp.where(moments.count > 0, moments.m2 / divisor, 1)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The triple of the union of two disjoint sets (Chan et al. 1979); empty sets are neutral.

    Args:
      a: Triple of the first set.
      b: Triple of the second set, broadcastable against the first.

    Returns:
      The triple of both.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.arange(10.0)
      >>> both = nj.merge_moments(nj.compute_moments(x[:3], 0), nj.compute_moments(x[3:], 0))
      >>> bool(jnp.allclose(nj.variance(both), jnp.var(x)))
      True
    """
    count = a.count + b.count
    divisor = jnp.maximum(count, 1)
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / divisor)
    m2 = a.m2 + b.m2 + delta**2 * (a.count * b.count / divisor)
    return Moments(count, mean, m2)


def compute_moments(
    x: jax.Array,
    axis: _checks.Axes,
    *,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    r"""Count, mean and M2 of `x` over `axis`, over valid positions only, merged by counts across devices.

    Args:
      x: Floating array. Statistics are float32, or float64 where `x` is.
      axis: Axis or axes to reduce; they are kept with size 1.
      mask: Broadcastable to `x`, any dtype; zero marks positions to leave out. Their values never matter, not
        even when they are NaN or infinite.
      axis_name: Mapped axis name(s) of `vmap`, `pmap` or `shard_map` to merge over. Under plain `jit` with
        sharded arrays nothing is needed: the reduction is global by construction.
      axis_index_groups: Groups of indices of that mapped axis that are merged with each other only.

    Returns:
      The triple; empty sets have count 0 and mean 0.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If an axis is out of range, names an empty dimension, or the mask does not broadcast.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> m = nj.compute_moments(jnp.array([1.0, 3.0, jnp.nan]), 0, mask=jnp.array([1, 1, 0]))
      >>> float(m.count[0]), float(m.mean[0]), float(m.m2[0])
      (2.0, 2.0, 2.0)
    """
    spec = standardization(x, axis, axis_name=axis_name, axis_index_groups=axis_index_groups)
    values, mask = prepare(x, mask)
    count = count_valid(values, mask, spec)
    centre, second = _central(values, mask, count, spec)
    return Moments(count, centre.mean, second * count)


@dataclasses.dataclass(frozen=True)
class Standardization:
    """The static description of one standardization: what is reduced, and how epsilon enters.

    Attributes:
      axes: Canonical axes to reduce.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits (`normjax.precision.inverse_root`).
      centre: Whether the mean is subtracted; without it the second moment is the mean square.
      ddof: Subtracted from the count in the variance that divides; 1 for the unbiased one.
      axis_name: Mapped axis to merge over.
      axis_index_groups: Groups of that axis, as a tuple of tuples.
      neighbours: `(axis, size)`: groups of `size` neighbours on a kept axis share their statistics, which are returned
        for every member. The sums over the other axes come first: an array cut into groups has its smallest axis last,
        where it is summed slowest.
      narrow: Whether the input has fewer bits than the statistics, which then measure its mean more than well enough.
    """

    axes: tuple[int, ...]
    epsilon: float = 0.0
    epsilon_mode: EpsilonMode = "inside"
    centre: bool = True
    ddof: int = 0
    axis_name: AxisName = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    neighbours: tuple[int, int] | None = None
    narrow: bool = False


def standardization(
    x: Any,
    axis: _checks.Axes,
    *,
    epsilon: float = 0.0,
    epsilon_mode: EpsilonMode = "inside",
    centre: bool = True,
    ddof: int = 0,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    neighbours: tuple[int, int] | None = None,
) -> Standardization:
    """Checks the arguments against `x` and returns them as a hashable `Standardization`."""
    # With a mapped axis or with neighbours there is something to reduce even where no axis of the array is.
    elsewhere = axis_name is not None or neighbours is not None
    none_here = elsewhere and not isinstance(axis, int) and not tuple(axis)
    axes = () if none_here else _checks.canonical_axes(axis, x.ndim)
    _checks.check_input(x, axes)
    _checks.check_epsilon(epsilon)
    groups = None if axis_index_groups is None else tuple(tuple(g) for g in axis_index_groups)
    if groups is not None and axis_name is None:
        raise ValueError(f"axis_index_groups={axis_index_groups!r} needs axis_name=, got axis_name=None.")
    narrow = jnp.finfo(x.dtype).bits < 32
    return Standardization(axes, epsilon, epsilon_mode, centre, ddof, axis_name, groups, neighbours, narrow)


def prepare(x: jax.Array, mask: jax.Array | None, dtype: Any = None) -> tuple[jax.Array, jax.Array | None]:
    """Casts `x` to the statistics dtype and makes the mask boolean, full rank and NaN-proof.

    Args:
      x: Floating array.
      mask: Broadcastable to `x`, any dtype, or `None`.
      dtype: Statistics dtype; `None` is float32, or float64 where `x` is.

    Returns:
      `(values, mask)`; non-finite values at masked-out positions are replaced by 0, because 0 * NaN in a
      cotangent would otherwise reach every valid position.
    """
    values = x.astype(statistics_dtype(x.dtype) if dtype is None else dtype)
    if mask is None:
        return values, None
    _checks.check_mask(mask, x.shape)
    mask = jnp.asarray(mask).astype(bool)
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    return jnp.where(mask | jnp.isfinite(values), values, 0), mask


def standardize(
    values: jax.Array,
    mask: jax.Array | None,
    spec: Standardization,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> tuple[jax.Array, Moments]:
    r"""$\gamma\hat x + \beta$ with $\hat x = (x - \mu)\, r(\sigma^2)$, and the moments it used.

    The derivative is the projected tangent $\dot{\hat x} = r\,(\dot x - \langle\dot x\rangle
    - k\,\hat x\,\langle\hat x \dot x\rangle)$, written once as a `custom_jvp`; its transpose is the fused
    backward pass, and jvp, vjp, hessian and vmap of grad all keep working.

    Args:
      values: Array in the statistics dtype, as returned by `prepare`.
      mask: Boolean, full rank, as returned by `prepare`, or `None`.
      spec: What is reduced and how.
      scale: $\gamma$ in the statistics dtype, of full rank and of size 1 on the reduced axes, or `None` for 1. It joins
        the factor, so that it costs nothing forward, and backward its gradient is a sum that is there already.
      bias: $\beta$, likewise, or `None` for 0.

    Returns:
      `(normalized, moments)`. Without centring, `moments.mean` is 0 and `m2` the sum of squares. Positions that
      are masked out are normalized too, with statistics they did not enter.
    """
    count = count_valid(values, mask, spec)
    normalized, mean, second = _standardize(values, mask, count, scale, bias, spec)
    return normalized, Moments(count, mean, second * count)


def weighted_means(
    values: tuple[jax.Array, ...], weights: jax.Array, spec: Standardization
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The sum of the weights (real numbers >= 0, of full rank) and the weighted means; 0 where nothing weighs."""
    # A square behind the mask may be infinite.
    terms = (jnp.broadcast_to(weights, values[0].shape), *(jnp.where(weights > 0, v, 0) * weights for v in values))
    total, *sums = across(tuple(jnp.sum(t, axis=spec.axes, keepdims=True) for t in terms), spec)
    divisor = jnp.where(total > 0, total, 1)
    return total, tuple(s / divisor for s in sums)


def weighted_central(
    values: jax.Array, weights: jax.Array, spec: Standardization
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Values minus their weighted mean, the sum of the weights, that mean, and the weighted variance.

    Differentiable in values and weights; positions that are masked out have weight 0.
    """
    near = _rounded(jax.lax.stop_gradient(weighted_means((values,), weights, spec)[1][0]))
    shifted = values - near
    total, (rest, square) = weighted_means((shifted, shifted * shifted), weights, spec)
    return shifted - rest, total, near + rest, jnp.maximum(square - rest * rest, 0)


def raw_means(
    arrays: tuple[jax.Array, ...], mask: jax.Array | None, spec: Standardization
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Means of several arrays in one pass, for equations in raw sums, where nothing cancels and nothing is centred.

    Args:
      arrays: Arrays of one shape, prepared (`prepare`), such as `(values, values * values)`.
      mask: Boolean, full rank, as returned by `prepare`, or `None`.
      spec: What is reduced; its epsilon and centring do not matter.

    Returns:
      `(means, count)`, reduced axes kept with size 1; 0 for an empty set, whose count is 0.
    """
    count = count_valid(arrays[0], mask, spec)
    return means(arrays, mask, count, spec), count


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _standardize(values, mask, count, scale, bias, spec: Standardization):
    centre, second = _central(values, mask, count, spec)
    factor = _factor(second, mask, count, spec)
    return _scaled(values, centre, _times(factor, scale), bias, spec), centre.mean, second


def _standardize_jvp(spec: Standardization, primals, tangents):
    values, mask, count, scale, bias = primals
    dot, _, _, scale_dot, bias_dot = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    centre, second = _central(values, mask, count, spec)
    factor = _factor(second, mask, count, spec)
    slope = _times(factor, scale)
    primal = _scaled(values, centre, slope, bias, spec), centre.mean, second
    # In terms of the centred value, which the backward pass recomputes from the input: the normalized one would be an
    # array more to keep. Products of small arrays come first: transposed, the sums of the cotangent and of its product
    # with the centred value are then the same for the input, the scale and the bias, and are taken once.
    centred = centre.subtracted_from(values)
    mean_dot = second_dot = jnp.zeros_like(second)
    normalized_dot = jnp.zeros_like(values)
    if dot is not None:
        unbias = _unbias(count, spec)
        gain = unbias * tangent_gain(second * unbias, spec.epsilon, spec.epsilon_mode)
        if spec.centre:
            mean_dot, along = means((dot, centred * dot), mask, count, spec)
            rest = slope * dot - slope * mean_dot if _by_columns(values, spec) else slope * (dot - mean_dot)
        else:
            (along,) = means((centred * dot,), mask, count, spec)
            rest = slope * dot
        second_dot = 2 * along
        # The order of the factors keeps a vector of norm 1e-14 from overflowing.
        normalized_dot = rest - centred * (slope * factor * (gain * (factor * along)))
    if scale_dot is not None:
        normalized_dot += centred * (factor * scale_dot)
    return primal, (normalized_dot if bias_dot is None else normalized_dot + bias_dot, mean_dot, second_dot)


_standardize.defjvp(_standardize_jvp, symbolic_zeros=True)


def _times(factor: jax.Array, scale: jax.Array | None) -> jax.Array:
    return factor if scale is None else factor * scale


def _scaled(values, centre: "_Centre", slope, bias, spec: Standardization):
    if _by_columns(values, spec) and centre.low is not None:
        # What is left of the centre is small and joins the bias: the output is one subtraction and one product and sum.
        shift = -centre.low * slope
        return (values - centre.high) * slope + (shift if bias is None else bias + shift)
    scaled = centre.subtracted_from(values) * slope
    return scaled if bias is None else scaled + bias


def _by_columns(values: jax.Array, spec: Standardization) -> bool:
    # Rows fit into the cache, where a second look at them is free; columns are read from memory each time.
    return values.ndim - 1 not in spec.axes


def _unbias(count, spec: Standardization):
    # One value has no deviation: whatever divides, its variance is 0.
    return 1.0 if spec.ddof == 0 else count / jnp.maximum(count - spec.ddof, 1)


def _factor(second, mask, count, spec: Standardization):
    # The empty-mask rule: statistics of nothing are (0, 1). Without a mask no set is empty.
    moment = second * _unbias(count, spec)
    moment = moment if mask is None else jnp.where(count > 0, moment, 1)
    return inverse_root(moment, spec.epsilon, spec.epsilon_mode)


class _Centre(NamedTuple):
    """A mean in two parts, because one number of the dtype cannot hold it; `None` is 0."""

    mean: jax.Array
    high: jax.Array | None = None
    low: jax.Array | None = None

    def subtracted_from(self, values: jax.Array) -> jax.Array:
        centred = values if self.high is None else values - self.high
        return centred if self.low is None else centred - self.low


def _central(values, mask, count, spec: Standardization) -> tuple[_Centre, jax.Array]:
    """The centre of the values and their second moment about it."""
    if not spec.centre:
        (second,) = means((values * values,), mask, count, spec)
        return _Centre(jnp.zeros_like(second)), second
    if mask is None and spec.narrow and jnp.finfo(values.dtype).bits >= 32:
        # What the mean of a narrow input lacks in a wider dtype is far below a rounding of the input.
        near = _rounded(_snapped(means((values,), None, count, spec)[0]))
        (second,) = means((jnp.square(values - near),), None, count, spec)
        # Columns: see `_central_by_columns`.
        return _Centre(near, _rounded(near, 0.5) if _by_columns(values, spec) else near), second
    if mask is None and _by_columns(values, spec):
        return _central_by_columns(values, count, spec)
    # The first mean only has to be near: it is a constant for autodiff. What it lacks is measured in the second pass.
    near = _rounded(jax.lax.stop_gradient(means((values,), mask, count, spec)[0]))
    shifted = values - near
    rest, square = means((shifted, shifted * shifted), mask, count, spec)
    rest = _rounded(rest)
    # rest is a rounding error of near, so nothing cancels here; the clip is for constant rows.
    return _Centre(near + rest, near, rest), jnp.maximum(square - rest * rest, 0)


def _central_by_columns(values, count, spec: Standardization) -> tuple[_Centre, jax.Array]:
    """The same where each look at the values is a read of the memory, two as for the textbook's formula.

    An array of the size of the values that is used twice would be written out by the CPU's compiler. Where one
    difference is needed in two places, two bounds in `_rounded` make it two.
    """
    blocks, size = _block_means(values, spec)
    # The sum of the means of all blocks, times the size of one, is that of the values.
    near = _rounded(jax.lax.stop_gradient(means((blocks,), None, count, spec)[0] * size))
    # The means of many blocks have independent rounding errors: what they lack together is known better than that of
    # any of them.
    terms = blocks - _rounded(near, 0.5), jnp.square(values - near)
    rest, square = means(terms, None, count, spec)
    rest = _rounded(rest * size)
    high = _rounded(near + rest)
    return _Centre(near + rest, high, rest - (high - near)), jnp.maximum(square - rest * rest, 0)


BLOCK = 64
LEAST_BLOCKS = 16  # their rounding errors average to a quarter of one


def _block_means(values, spec: Standardization) -> tuple[jax.Array, int]:
    """Means of blocks of the reduced axes and a block's size; the values themselves and 1 where blocks would be few.

    With several axes a block is a line along the last of them, or what lies across that line.
    """
    if len(spec.axes) > 1:
        *others, along = spec.axes
        for inner, outer in (((along,), others), (tuple(others), (along,))):
            if math.prod(values.shape[a] for a in outer) >= LEAST_BLOCKS:
                return jnp.mean(values, axis=inner, keepdims=True), math.prod(values.shape[a] for a in inner)
    if len(spec.axes) != 1 or values.shape[spec.axes[0]] % BLOCK or values.shape[spec.axes[0]] < BLOCK * LEAST_BLOCKS:
        return values, 1
    (axis,) = spec.axes
    if jax.typeof(values).sharding.spec[axis] is not None:  # an axis that is explicitly sharded cannot be cut
        return values, 1
    cut = (*values.shape[:axis], -1, BLOCK, *values.shape[axis + 1 :])
    return jnp.mean(values.reshape(cut), axis=axis + 1), BLOCK


def _snapped(mean: jax.Array) -> jax.Array:
    # Three bits shorter: the mean of equal narrow values, which are on that grid, is then that value exactly. An ulp
    # beside it, epsilon alone would divide the deviation, and a constant column would not give 0.
    # The product's rounding drops the bits (Dekker), whether or not the compiler fuses a product and a difference;
    # `reduce_precision` would keep the CPU's compiler from one pass over a row.
    part = mean / 16  # so that the product stays finite
    product = 9 * part
    return mean + jax.lax.stop_gradient(16 * (product - (product - part)) - mean)


def _rounded(mean: jax.Array, share: float = 1.0) -> jax.Array:
    # XLA turns a division by the count into a product with 1 / n, and the compiler fuses that product into `x - mean`
    # in some of the loops that recompute it and not in others. The two then differ by half an ulp of the mean: the very
    # error that the second pass is there to remove. A maximum between product and difference keeps them apart, and
    # unlike a select it can be part of any fusion; the second term makes a mean that is not finite NaN.
    return jnp.maximum(mean, share * float(jnp.finfo(mean.dtype).min)) + 0 * mean


def count_valid(values: jax.Array, mask: jax.Array | None, spec: Standardization) -> jax.Array:
    """The number of valid positions over the axes of `spec` and its mapped axis, in the dtype of `values`."""
    if mask is None:
        size = math.prod(values.shape[a] for a in spec.axes) * (1 if spec.neighbours is None else spec.neighbours[1])
        count = jnp.full((1,) * values.ndim, size, values.dtype)
        # psum of a constant is the axis size times it: no collective is emitted.
        return count if spec.axis_name is None else across(count, spec)
    # A mask axis of size 1 stands for the whole axis of the values. Integers count exactly.
    repeat = math.prod(values.shape[a] for a in spec.axes if mask.shape[a] == 1)
    valid = jnp.sum(mask, axis=spec.axes, keepdims=True, dtype=jnp.int32) * repeat
    valid = _over_neighbours(valid, spec)
    return across(valid, spec).astype(values.dtype)


def means(
    values: tuple[jax.Array, ...], mask: jax.Array | None, count: jax.Array, spec: Standardization
) -> tuple[jax.Array, ...]:
    """Means of several arrays over the valid positions, merged across devices together; 0 for an empty set."""
    if mask is not None:
        values = tuple(jnp.where(mask, v, 0) for v in values)
    sums = tuple(_over_neighbours(jnp.sum(v, axis=spec.axes, keepdims=True), spec) for v in values)
    divisor = jnp.maximum(count, 1)
    return tuple(total / divisor for total in across(sums, spec))


def _over_neighbours(total: jax.Array, spec: Standardization) -> jax.Array:
    """The sum over each group of neighbours, at every member of the group."""
    if spec.neighbours is None:
        return total
    axis, size = spec.neighbours
    if total.shape[axis] == 1:  # one value of a mask for the whole axis
        return total * size
    cut = total.reshape(*total.shape[:axis], -1, size, *total.shape[axis + 1 :])
    together = jnp.sum(cut, axis=axis + 1, keepdims=True, dtype=total.dtype)
    return jnp.broadcast_to(together, cut.shape).reshape(total.shape)


def across(value: Any, spec: Standardization) -> Any:
    """The sum over the mapped axis of `spec`, if it has one."""
    if spec.axis_name is None:
        return value
    groups = None if spec.axis_index_groups is None else [list(g) for g in spec.axis_index_groups]
    return jax.lax.psum(value, spec.axis_name, axis_index_groups=groups)
