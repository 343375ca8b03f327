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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from normjax import _checks
from normjax._centre import Centre, by_columns, central, rounded
from normjax.precision import inverse_root, tangent_gain
from normjax.reductions import AxisName, Standardization, across, count_valid, means, prepare, standardization


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
    centre, second = central(values, mask, count, spec)
    return Moments(count, centre.mean, second * count)


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


def centred(values: jax.Array, mask: jax.Array | None, spec: Standardization) -> tuple[jax.Array, Centre, Moments]:
    """The values minus their mean, that mean in two parts, and the moments; differentiable."""
    count = count_valid(values, mask, spec)
    centre, second = central(values, mask, count, spec)
    return centre.subtracted_from(values), centre, Moments(count, centre.mean, second * count)


def pool_moments(
    centre: Centre, moments: Moments, spec: Standardization, within: jax.Array | None = None
) -> tuple[Centre, Moments]:
    """What a second look at the values would measure: mean and moments of the union of the sets along the axes.

    Args:
      centre, moments: Of the sets, as `centred` returns them.
      spec: Which sets are joined.
      within: Variances to use instead of the biased ones.
    """
    near = rounded(jax.lax.stop_gradient(weighted_means((moments.mean,), moments.count, spec)[1][0]))
    apart = centre.minus(Centre(near, near))
    within = moments.m2 / jnp.maximum(moments.count, 1) if within is None else within
    total, (rest, square, within) = weighted_means((apart, apart * apart, within), moments.count, spec)
    between = jnp.maximum(square - rest * rest, 0)
    return Centre(near + rest, near, rest), Moments(total, near + rest, (within + between) * total)


def weighted_means(
    values: tuple[jax.Array, ...], weights: jax.Array, spec: Standardization
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The sum of the weights (real numbers >= 0, of full rank) and the weighted means; 0 where nothing weighs."""
    # Where whole lines weigh the same, the sum of each comes first, and only the sums are weighted.
    shape = values[0].shape
    lines = tuple(a for a in spec.axes if weights.shape[a] == 1 < shape[a])
    length = math.prod(shape[a] for a in lines)
    sums = tuple(jnp.sum(v, axis=lines, keepdims=True) if lines else v for v in values)
    # A square behind the mask may be infinite.
    terms = (
        jnp.broadcast_to(length * weights, sums[0].shape),
        *(jnp.where(weights > 0, s, 0) * weights for s in sums),
    )
    total, *sums = across(tuple(jnp.sum(t, axis=spec.axes, keepdims=True) for t in terms), spec)
    divisor = jnp.where(total > 0, total, 1)
    return total, tuple(s / divisor for s in sums)


def weighted_central(
    values: jax.Array, weights: jax.Array, spec: Standardization
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Values minus their weighted mean, the sum of the weights, that mean, and the weighted variance.

    Differentiable in values and weights; positions that are masked out have weight 0.
    """
    near = rounded(jax.lax.stop_gradient(weighted_means((values,), weights, spec)[1][0]))
    shifted = values - near
    total, (rest, square) = weighted_means((shifted, shifted * shifted), weights, spec)
    return shifted - rest, total, near + rest, jnp.maximum(square - rest * rest, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _standardize(values, mask, count, scale, bias, spec: Standardization):
    centre, second = central(values, mask, count, spec)
    factor = _factor(second, mask, count, spec)
    return _scaled(values, centre, _times(factor, scale), bias, spec), centre.mean, second


def _standardize_jvp(spec: Standardization, primals, tangents):
    values, mask, count, scale, bias = primals
    dot, _, _, scale_dot, bias_dot = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    centre, second = central(values, mask, count, spec)
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
            rest = slope * dot - slope * mean_dot if by_columns(values, spec) else slope * (dot - mean_dot)
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


def _scaled(values, centre: Centre, slope, bias, spec: Standardization):
    if by_columns(values, spec) and centre.low is not None:
        # What is left of the centre is small and joins the bias: the output is one subtraction and one product and sum.
        shift = -centre.low * slope
        return (values - centre.high) * slope + (shift if bias is None else bias + shift)
    scaled = centre.subtracted_from(values) * slope
    return scaled if bias is None else scaled + bias


def _unbias(count, spec: Standardization):
    # One value has no deviation: whatever divides, its variance is 0.
    return 1.0 if spec.ddof == 0 else count / jnp.maximum(count - spec.ddof, 1)


def _factor(second, mask, count, spec: Standardization):
    # The empty-mask rule: statistics of nothing are (0, 1). Without a mask no set is empty.
    moment = second * _unbias(count, spec)
    moment = moment if mask is None else jnp.where(count > 0, moment, 1)
    return inverse_root(moment, spec.epsilon, spec.epsilon_mode)
