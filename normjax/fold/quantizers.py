"""Quantizers of weights and activations, as the calibration of folded networks needs them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from normjax import _checks
from normjax.fold._arrays import Array, count_of, namespace


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
