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
from typing import Any

import jax
import jax.numpy as jnp

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
    _, mean, second = _central(values, mask, count, spec)
    return Moments(count, mean, second * count)


@dataclasses.dataclass(frozen=True)
class Standardization:
    """The static description of one standardization: what is reduced, and how epsilon enters.

    Attributes:
      axes: Canonical axes to reduce.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits (`normjax.precision.inverse_root`).
      centre: Whether the mean is subtracted; without it the second moment is the mean square.
      axis_name: Mapped axis to merge over.
      axis_index_groups: Groups of that axis, as a tuple of tuples.
    """

    axes: tuple[int, ...]
    epsilon: float = 0.0
    epsilon_mode: EpsilonMode = "inside"
    centre: bool = True
    axis_name: AxisName = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None


def standardization(
    x: Any,
    axis: _checks.Axes,
    *,
    epsilon: float = 0.0,
    epsilon_mode: EpsilonMode = "inside",
    centre: bool = True,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Standardization:
    """Checks the arguments against `x` and returns them as a hashable `Standardization`."""
    # With a mapped axis there is something to reduce even where the array itself has no such axis left.
    mapped_only = axis_name is not None and not isinstance(axis, int) and not tuple(axis)
    axes = () if mapped_only else _checks.canonical_axes(axis, x.ndim)
    _checks.check_input(x, axes)
    _checks.check_epsilon(epsilon)
    groups = None if axis_index_groups is None else tuple(tuple(g) for g in axis_index_groups)
    if groups is not None and axis_name is None:
        raise ValueError(f"axis_index_groups={axis_index_groups!r} needs axis_name=, got axis_name=None.")
    return Standardization(axes, epsilon, epsilon_mode, centre, axis_name, groups)


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


def standardize(values: jax.Array, mask: jax.Array | None, spec: Standardization) -> tuple[jax.Array, Moments]:
    r"""$\hat x = (x - \mu)\, r(\sigma^2)$ and the moments it used.

    The derivative is the projected tangent $\dot{\hat x} = r\,(\dot x - \langle\dot x\rangle
    - k\,\hat x\,\langle\hat x \dot x\rangle)$, written once as a `custom_jvp`; its transpose is the fused
    backward pass, and jvp, vjp, hessian and vmap of grad all keep working.

    Args:
      values: Array in the statistics dtype, as returned by `prepare`.
      mask: Boolean, full rank, as returned by `prepare`, or `None`.
      spec: What is reduced and how.

    Returns:
      `(normalized, moments)`. Without centring, `moments.mean` is 0 and `m2` the sum of squares. Positions that
      are masked out are normalized too, with statistics they did not enter.
    """
    count = count_valid(values, mask, spec)
    normalized, mean, second = _standardize(values, mask, count, spec)
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _standardize(values, mask, count, spec: Standardization):
    centred, mean, second = _central(values, mask, count, spec)
    return centred * _factor(second, mask, count, spec), mean, second


@_standardize.defjvp
def _standardize_jvp(spec: Standardization, primals, tangents):
    values, mask, count = primals
    centred, mean, second = _central(values, mask, count, spec)
    factor = _factor(second, mask, count, spec)
    dot = tangents[0]
    if spec.centre:
        mean_dot, along = means((dot, centred * dot), mask, count, spec)
        rest = dot - mean_dot
    else:
        (along,) = means((centred * dot,), mask, count, spec)
        mean_dot, rest = jnp.zeros_like(mean), dot
    # In terms of the centred value, which the backward pass recomputes from the input: the normalized one would be an
    # array more to keep. The order of the factors keeps a vector of norm 1e-14 from overflowing.
    gain = tangent_gain(second, spec.epsilon, spec.epsilon_mode)
    normalized_dot = factor * rest - centred * (factor * factor * (gain * (factor * along)))
    return (centred * factor, mean, second), (normalized_dot, mean_dot, 2 * along)


def _factor(second, mask, count, spec: Standardization):
    # The empty-mask rule: statistics of nothing are (0, 1). Without a mask no set is empty.
    moment = second if mask is None else jnp.where(count > 0, second, 1)
    return inverse_root(moment, spec.epsilon, spec.epsilon_mode)


def _central(values, mask, count, spec: Standardization):
    """Centred values, mean and second moment; one reduction without centring, two with it."""
    if not spec.centre:
        (second,) = means((values * values,), mask, count, spec)
        return values, jnp.zeros_like(second), second
    # The first mean only has to be near: it is a constant for autodiff. What it lacks is measured in the second pass.
    near = _rounded(jax.lax.stop_gradient(means((values,), mask, count, spec)[0]))
    shifted = values - near
    rest, square = means((shifted, shifted * shifted), mask, count, spec)
    rest = _rounded(rest)
    # rest is a rounding error of near, so nothing cancels here; the clip is for constant rows.
    return shifted - rest, near + rest, jnp.maximum(square - rest * rest, 0)


def _rounded(mean: jax.Array) -> jax.Array:
    # XLA turns a division by the count into a product with 1 / n, and the compiler fuses that product into `x - mean`
    # in some of the loops that recompute it and not in others. The two then differ by half an ulp of the mean: the very
    # error that the second pass is there to remove. A maximum between product and difference keeps them apart, and
    # unlike a select it can be part of any fusion; the second term makes a mean that is not finite NaN.
    return jnp.maximum(mean, float(jnp.finfo(mean.dtype).min)) + 0 * mean


def count_valid(values: jax.Array, mask: jax.Array | None, spec: Standardization) -> jax.Array:
    """The number of valid positions over the axes of `spec` and its mapped axis, in the dtype of `values`."""
    if mask is None:
        size = math.prod(values.shape[a] for a in spec.axes)
        count = jnp.full((1,) * values.ndim, size, values.dtype)
        # psum of a constant is the axis size times it: no collective is emitted.
        return count if spec.axis_name is None else across(count, spec)
    # A mask axis of size 1 stands for the whole axis of the values. Integers count exactly.
    repeat = math.prod(values.shape[a] for a in spec.axes if mask.shape[a] == 1)
    valid = jnp.sum(mask, axis=spec.axes, keepdims=True, dtype=jnp.int32) * repeat
    return across(valid, spec).astype(values.dtype)


def means(
    values: tuple[jax.Array, ...], mask: jax.Array | None, count: jax.Array, spec: Standardization
) -> tuple[jax.Array, ...]:
    """Means of several arrays over the valid positions, merged across devices together; 0 for an empty set."""
    if mask is not None:
        values = tuple(jnp.where(mask, v, 0) for v in values)
    sums = across(tuple(jnp.sum(v, axis=spec.axes, keepdims=True) for v in values), spec)
    divisor = jnp.maximum(count, 1)
    return tuple(total / divisor for total in sums)


def across(value: Any, spec: Standardization) -> Any:
    """The sum over the mapped axis of `spec`, if it has one."""
    if spec.axis_name is None:
        return value
    groups = None if spec.axis_index_groups is None else [list(g) for g in spec.axis_index_groups]
    return jax.lax.psum(value, spec.axis_name, axis_index_groups=groups)
