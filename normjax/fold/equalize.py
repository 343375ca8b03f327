r"""RepQ-ViT's step: scale moves between a norm and the linear layers after it, folding backwards.

Afterwards one quantizer serves all features of the norm's output, and the network computes what it did.
"""

from collections.abc import Sequence
from typing import NamedTuple

from normjax.fold._arrays import Array, Axes, count_of, namespace
from normjax.fold.rules import Pair, affine_before


class Equalization(NamedTuple):
    """Factor and shift per feature, and the one quantizer that serves all features afterwards."""

    factor: Array
    shift: Array
    delta: Array
    zero: Array


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
