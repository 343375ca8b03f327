r"""What quantization of a folded network needs of its norms: uniform quantizers, moved scales, re-tuned moments.

RepQ-ViT's step moves scale between a norm and the linear layers after it, so that one scale serves all features of the
norm's output: folding backwards. CalibTIP's restores what batch norm would have made of the outputs of a quantized
layer into which it was folded.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from normjax import _checks
from normjax.fold._arrays import Array, Axes, count_of, namespace
from normjax.fold.rules import Pair, affine_after, affine_before


class Equalization(NamedTuple):
    """Factor and shift per feature, and the one quantizer that serves all features afterwards."""

    factor: Array
    shift: Array
    delta: Array
    zero: Array


def quantize_uniform(x: Array, delta: Array, zero: Array, bits: int) -> Array:
    r"""Rounds to the nearest of $2^b$ equally spaced values.

    $$\hat x = \delta\, (\operatorname{clip}(\lfloor x/\delta + z \rceil,\ 0,\ 2^b - 1) - z)$$

    Args:
      x: Floating array.
      delta: $\delta > 0$, broadcastable to `x`.
      zero: $z$, likewise; an integer where hardware has to represent 0 exactly.
      bits: $b$; codes run from 0 to $2^b - 1$.

    Returns:
      The rounded values, shaped like `x`.

    Raises:
      ValueError: If `bits` is below 1.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.quantize_uniform(np.array([-1.0, 0.2, 0.9]), 0.5, 2.0, 2))
      [-1.   0.   0.5]
    """
    _checks.check_count("bits", bits, 1)
    xp = namespace(x)
    return (xp.clip(xp.round(x / delta + zero), 0, 2**bits - 1) - zero) * delta


def range_quantizer(low: Array, high: Array, bits: int, *, integer_zero: bool = False) -> tuple[Array, Array]:
    r"""The quantizer of a range that includes 0: $\delta = (h - l) / (2^b - 1)$, $z = -l/\delta$.

    CalibTIP takes the least and greatest entry of each output unit of a kernel, and for activations the means over the
    batch of those of each sample. It trains with an integer zero point and infers without; one of both should be used.

    Args:
      low: $l$; taken as 0 where positive.
      high: $h$; taken as 0 where negative.
      bits: $b$.
      integer_zero: Whether $z$ is rounded.

    Returns:
      `(delta, zero)`; an empty range gives the quantizer of the range 1.

    Raises:
      ValueError: If `bits` is below 1 or a range is turned around.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> fold.range_quantizer(np.array([-1.0]), np.array([2.0]), 2)
      (array([1.]), array([1.]))

    References:
      Hubara et al. 2020, [Improving Post Training Neural Quantization](https://arxiv.org/abs/2006.10518).
    """
    _checks.check_count("bits", bits, 1)
    xp = namespace(low, high)
    if count_of(low > high):
        raise ValueError(f"expected low <= high, got low={low!r} and high={high!r}.")
    low, high = xp.minimum(low, 0), xp.maximum(high, 0)
    width = high - low
    delta = xp.where(width > 0, width, 1) / (2**bits - 1)
    zero = -low / delta
    return delta, xp.round(zero) if integer_zero else zero


def percentile_quantizer(
    x: Array, bits: int, *, percentiles: Sequence[float] = (0.999, 0.9999, 0.99999)
) -> tuple[Array, Array]:
    """The quantizer per feature with the least squared error among ranges cut at percentiles.

    Args:
      x: Calibration values, `(..., features)`.
      bits: Of the codes.
      percentiles: Shares p of the values of a feature below the range's end; 1 - p lie below its start.

    Returns:
      `(delta, zero)`, each `(features,)`, NumPy float64; a constant feature gets the quantizer of the range 1.

    Raises:
      ValueError: If a percentile is outside [0, 1] or there are none.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> fold.percentile_quantizer(np.array([[-1.0], [2.0]]), 2, percentiles=(1.0,))
      (array([1.]), array([1.]))

    References:
      Li et al. 2022, [RepQ-ViT](https://arxiv.org/abs/2212.08254).
    """
    values = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    candidates = []
    for share in percentiles:
        _checks.check_fraction("percentiles", share)
        high, low = (np.percentile(values, 100 * q, axis=0) for q in (share, 1 - share))
        delta = np.where(high > low, high - low, 1) / (2**bits - 1)
        zero = np.round(-low / delta)
        error = np.mean((values - quantize_uniform(values, delta, zero, bits)) ** 2, axis=0)
        candidates.append((error, delta, zero))
    if not candidates:
        raise ValueError("percentiles=() gives no range; the published ones are (0.999, 0.9999, 0.99999).")
    errors, deltas, zeros = (np.stack(part) for part in zip(*candidates, strict=True))
    best = (errors.argmin(0), np.arange(values.shape[-1]))
    return deltas[best], zeros[best]


def equalization(delta: Array, zero: Array, *, clip: float | None = None, integer_zero: bool = True) -> Equalization:
    r"""RepQ's factor and shift per feature, from the quantizers of the features: $r = \delta_c / \delta$.

    $$\delta = \langle \delta_c \rangle,\quad z = \langle z_c \rangle,\quad
    t = z \delta - \frac{z_c \delta_c}{r}$$

    `equalize_ln_linear` with them leaves the network's function as it is and the norm's output fit for one quantizer
    $(\delta, z)$.

    Args:
      delta: $\delta_c > 0$, `(features,)`.
      zero: $z_c$.
      clip: LRP-QViT keeps outlying features from inflating $r$; its equation is not public. Here $r$ is clipped to
        [1/clip, clip]; the function stays exact whatever $r$ is. `None` for RepQ itself.
      integer_zero: Whether $z$ is rounded; the authors' code takes the mean of integers as it is.

    Returns:
      `Equalization(factor, shift, delta, zero)`.

    Raises:
      ValueError: If some $\delta_c$ is not positive or `clip` is below 1.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.equalization(np.array([1.0, 3.0]), np.array([1.0, 1.0])).factor)
      [0.5 1.5]

    References:
      Li et al. 2022, [RepQ-ViT](https://arxiv.org/abs/2212.08254); Ranjan and Savakis 2024,
      [LRP-QViT](https://arxiv.org/abs/2401.11243).
    """
    if count_of(delta <= 0) or (clip is not None and clip < 1):
        raise ValueError(f"expected positive delta and clip >= 1 or None, got delta={delta!r} and clip={clip!r}.")
    xp = namespace(delta, zero)
    common, shared = delta.mean(), zero.mean()
    shared = xp.round(shared) if integer_zero else shared
    factor = delta / common
    factor = factor if clip is None else xp.clip(factor, 1 / clip, clip)
    return Equalization(factor, shared * common - zero * delta / factor, common, shared)


def equalize_ln_linear(
    scale: Array, bias: Array, linears: Sequence[Pair], factor: Array, shift: Array | None = None, *, in_axes: Axes = -2
) -> tuple[Array, Array, list[Pair]]:
    r"""Moves scale and shift from a norm into the linear layers after it, or back.

    $$\gamma' = \gamma / r,\quad \beta' = \beta / r - t,\quad K' = r \odot K,\quad b' = b + t K'$$

    Exact if every reader of the norm's output is among the layers. The factor $r = \gamma$ without a shift is F4's
    gain; SmoothQuant's is another choice.

    Args:
      scale: $\gamma$, `(features,)`.
      bias: $\beta$.
      linears: `(kernel, bias)` of every layer that reads the norm.
      factor: $r$, `(features,)`, without zeros.
      shift: $t$, or `None` for 0.
      in_axes: Input axes of the kernels.

    Returns:
      `(scale, bias, linears)`.

    Raises:
      ValueError: If some $r$ is 0 or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> scale, bias, [(kernel, _)] = fold.equalize_ln_linear(
      ...     np.array([2.0, 8.0]), np.zeros(2), [(np.ones((2, 1)), None)], np.array([1.0, 4.0])
      ... )
      >>> print(scale, kernel.T)
      [2. 2.] [[1. 4.]]

    References:
      Li et al. 2022, [RepQ-ViT](https://arxiv.org/abs/2212.08254).
    """
    if count_of(factor == 0):
        raise ValueError(f"a feature divided by the factor 0 is lost; got factor={factor!r}.")
    moved = bias / factor if shift is None else bias / factor - shift
    # x = r (x' + t), where x' is the new output of the norm.
    back = None if shift is None else factor * shift
    return scale / factor, moved, [affine_before(k, b, factor, back, in_axes=in_axes) for k, b in linears]


def moment_match(
    kernel: Array,
    bias: Array | None,
    mean: Array,
    var: Array,
    mean_reference: Array,
    var_reference: Array,
    epsilon: float = 1e-5,
    *,
    out_axes: Axes = -1,
) -> Pair:
    r"""Rescales the outputs of a layer so that measured moments become those of a reference.

    $$c = \sqrt{\frac{v_r + \epsilon}{v + \epsilon}},\qquad K' = K \odot c,\qquad b' = (b - m) \odot c + m_r$$

    After quantization, pruning or merging of networks, whose outputs shrink.

    Args:
      kernel, bias, out_axes: As in `affine_after`.
      mean, var: $m, v$ of the layer's outputs on calibration data.
      mean_reference, var_reference: $m_r, v_r$.
      epsilon: Non-negative.

    Returns:
      `(kernel, bias)`.

    Raises:
      ValueError: If a shape does not fit or epsilon is negative.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> one = np.ones(1)
      >>> kernel, bias = fold.moment_match(np.ones((1, 1)), None, one, one, 5 * one, 4 * one, 0.0)
      >>> print(kernel, bias)
      [[2.]] [3.]

    References:
      Hubara et al. 2020, [Improving Post Training Neural Quantization](https://arxiv.org/abs/2006.10518); Jordan et al.
      2022, [REPAIR](https://arxiv.org/abs/2211.08403).
    """
    _checks.check_epsilon(epsilon)
    factor = ((var_reference + epsilon) / (var + epsilon)) ** 0.5
    return affine_after(kernel, bias, factor, mean_reference - mean * factor, out_axes=out_axes)


def retune_bn_stats(
    kernel: Array,
    bias: Array | None,
    scale: Array,
    offset: Array,
    mean: Array,
    var: Array,
    epsilon: float = 1e-5,
    *,
    out_axes: Axes = -1,
) -> Pair:
    r"""CalibTIP's re-tuning of a quantized layer into which a batch norm was folded.

    The batch norm's output had mean $\beta$ and deviation $|\gamma|$: `moment_match` with $m_r = \beta$ and $v_r =
    \gamma^2$. The sign of $\gamma$ is in the kernel already. Means and variances over the calibration set are better
    than the moving ones of the authors' code.

    Args:
      kernel, bias: Folded and quantized.
      scale: $\gamma$ of the batch norm that was folded.
      offset: $\beta$.
      mean, var: Of the layer's outputs on calibration data.
      epsilon: The batch norm's.
      out_axes: As in `affine_after`.

    Returns:
      `(kernel, bias)`.

    Raises:
      ValueError: If a shape does not fit or epsilon is negative.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> one = np.ones(1)
      >>> kernel, bias = fold.retune_bn_stats(np.ones((1, 1)), None, -2 * one, 5 * one, one, one, 0.0)
      >>> print(kernel, bias)
      [[2.]] [3.]

    References:
      Hubara et al. 2020, [Improving Post Training Neural Quantization](https://arxiv.org/abs/2006.10518).
    """
    return moment_match(kernel, bias, mean, var, offset, scale * scale, epsilon, out_axes=out_axes)


def quantize_log_sqrt2(p: Array, delta: Any, bits: int) -> Array:
    r"""RepQ's quantizer of attention weights: powers of the root of 2.

    $$\hat p = \delta\, 2^{-q/2},\qquad q = \lfloor -2\log_2(p/\delta)\rceil$$

    Args:
      p: Non-negative.
      delta: $\delta > 0$, the greatest value.
      bits: Of the codes $q$; what would need a greater code is 0.

    Returns:
      The rounded values, shaped like `p`.

    Raises:
      ValueError: If `bits` is below 1.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.quantize_log_sqrt2(np.array([1.0, 0.7, 0.26, 1e-9]), 1.0, 4).round(3))
      [1.    0.707 0.25  0.   ]

    References:
      Li et al. 2022, [RepQ-ViT](https://arxiv.org/abs/2212.08254).
    """
    _checks.check_count("bits", bits, 1)
    xp = namespace(p)
    levels = 2**bits
    # Far below the least level, where a logarithm of 0 would be infinite.
    least = 2.0**-levels
    codes = xp.maximum(xp.round(-2 * xp.log2(xp.maximum(p / delta, least))), 0)
    return xp.where(codes < levels, delta * 2.0 ** (-codes / 2), 0)
