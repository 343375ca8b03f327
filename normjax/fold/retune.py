r"""CalibTIP's step: outputs of a layer that was quantized, pruned or merged get back the moments they had."""

from normjax import _checks
from normjax.fold._arrays import Array, Axes
from normjax.fold.rules import Pair, affine_after


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
