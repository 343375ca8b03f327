r"""The exact rules of inference folding, one pure function each, in Flax's layouts.

Dense kernels are (in, out), convolutions HWIO; `in_axes` and `out_axes` name others (`nnx.LinearGeneral`). A norm that
is an affine map in evaluation, $y = a \odot x + s$, moves into the linear layer after it or before it; so do the gain
and the bias of one that keeps its statistics. Arrays may be NumPy's or JAX's and stay so. Zero, negative and huge gains
are nothing special, but for the rules that divide by one, which say so.

Rounding: computed in float64 from the parameters that were trained and rounded once at the end, a fold costs nothing.
"""

from collections.abc import Sequence

from normjax import _checks
from normjax.fold._arrays import Array, Axes, added, along, axes_of, check_bias, count_of, to_features

Pair = tuple[Array, Array | None]


def running_affine(
    scale: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array,
    epsilon: float,
    *,
    alpha: Array | float | None = None,
) -> tuple[Array, Array]:
    r"""What a norm with running statistics is in evaluation: $y = a \odot x + s$.

    $$a = \frac{\gamma}{\sqrt{\bar\sigma^2 + \epsilon}} + \alpha,\qquad
    s = \beta - \frac{\gamma \bar\mu}{\sqrt{\bar\sigma^2+\epsilon}}$$

    Batch normalization has no $\alpha$; Unified Normalization neither $\alpha$ nor a mean; RepBN, and PRepBN once its
    schedule has ended, all of it (rules F1, F8, F9).

    Args:
      scale: $\gamma$, `(features,)`, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      mean: $\bar\mu$, or `None` for a norm that does not centre.
      var: $\bar\sigma^2$.
      epsilon: Non-negative; $\bar\sigma^2 + \epsilon$ must not be 0.
      alpha: RepBN's factor of the skip, a number.

    Returns:
      `(a, s)`, each `(features,)`.

    Raises:
      ValueError: If epsilon is negative, or variance and epsilon together are not positive.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> a, s = fold.running_affine(np.array([2.0]), np.array([1.0]), np.array([3.0]), np.array([4.0]), 0.0, alpha=0.5)
      >>> print(a, s)
      [1.5] [-2.]

    References:
      Guo et al. 2024, [SLAB](https://arxiv.org/abs/2405.11582); Yang et al. 2022,
      [Unified Normalization](https://arxiv.org/abs/2208.01313).
    """
    _checks.check_epsilon(epsilon)
    if count_of(var + epsilon <= 0):
        raise ValueError(
            f"variance + epsilon is not positive in {count_of(var + epsilon <= 0)} of {var.size} features."
        )
    a = (var + epsilon) ** -0.5
    a = a if scale is None else a * scale
    s = a * 0 if mean is None else -a * mean
    s = s if bias is None else s + bias
    return (a if alpha is None else a + alpha), s


def affine_after(
    kernel: Array, bias: Array | None, scale: Array, shift: Array | None = None, *, out_axes: Axes = -1
) -> Pair:
    r"""A linear layer and the affine map after it as one layer: $K' = K \odot a$, $b' = b \odot a + s$.

    Rules F1 (batch norm), F8 (RepBN: $s$ carries no $\alpha b$, the product $b \odot a$ does, which the authors' patch
    embedding drops) and F10 (LayerScale, without a shift). Exact wherever nothing else reads the layer's output and
    nothing (an activation, active dropout) lies between; any padding, stride and grouping.

    Args:
      kernel: $K$.
      bias: $b$, of the shape of the output axes, or `None`.
      scale: $a$, likewise.
      shift: $s$, likewise, or `None` for 0.
      out_axes: Output axes of the kernel.

    Returns:
      `(kernel, bias)`; the bias is `None` where there was none and no shift.

    Raises:
      ValueError: If a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> kernel, bias = fold.affine_after(np.ones((2, 1)), np.ones(1), np.array([3.0]), np.array([0.5]))
      >>> print(kernel.T, bias)
      [[3. 3.]] [3.5]
    """
    axes = axes_of(out_axes, kernel.ndim, "out_axes")
    check_bias(bias, axes, kernel)
    check_bias(shift, axes, kernel)
    scaled = kernel * along(scale, axes, kernel, "scale")
    return scaled, added(None if bias is None else bias * scale, shift)


def bn_after(
    kernel: Array,
    bias: Array | None,
    scale: Array | None,
    offset: Array | None,
    mean: Array,
    var: Array,
    epsilon: float,
    *,
    out_axes: Axes = -1,
) -> Pair:
    r"""A linear layer and the batch normalization after it as one: $K' = K \odot a$, $b' = (b - \mu) \odot a + \beta$.

    Rule F1. The statistics must be those of evaluation; conditions as in `affine_after`.

    Args:
      kernel, bias, out_axes: As in `affine_after`.
      scale: $\gamma$, or `None` for 1.
      offset: $\beta$, or `None` for 0.
      mean, var, epsilon: As in `running_affine`.

    Returns:
      `(kernel, bias)`.

    Raises:
      ValueError: If a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> one = np.ones(1)
      >>> kernel, bias = fold.bn_after(np.ones((2, 1)), None, 2 * one, one, 3 * one, 4 * one, 0.0)
      >>> print(kernel.T, bias)
      [[1. 1.]] [-2.]
    """
    return affine_after(kernel, bias, *running_affine(scale, offset, mean, var, epsilon), out_axes=out_axes)


def affine_before(
    kernel: Array,
    bias: Array | None,
    scale: Array | None,
    shift: Array | None = None,
    *,
    in_axes: Axes = -2,
    out_axes: Axes = -1,
    groups: int = 1,
) -> Pair:
    r"""An affine map and the linear layer after it as one layer: $K' = a \odot K$, $b' = b + s K$.

    Rules F2 and F3 (batch norm before Dense, or before a convolution that pads nothing), F4 (gain and bias of layer
    norm), F5 (gain of RMS norm, $1 + w$ for Gemma's), F8, F9, F12 and F13. Exact if every reader of the map's output is
    folded, and if a convolution pads nothing: behind a border of zeros the shift is missing, and `conv_pad_value` says
    what to pad with instead.

    Args:
      kernel: $K$.
      bias: $b$, of the shape of the output axes, or `None`.
      scale: $a$, of the shape of the input axes in their order, or `None` for 1; with groups, all input features.
      shift: $s$, likewise, or `None` for 0.
      in_axes: Input axes of the kernel.
      out_axes: Output axes; what is neither (the window of a convolution) is summed over.
      groups: Feature groups of a convolution with one input and one output axis, whose kernel holds only the inputs of
        one group; for a depthwise one the number of input features.

    Returns:
      `(kernel, bias)`; a shift makes a bias where there was none, and the layer needs `use_bias=True`.

    Raises:
      ValueError: If a shape or the groups do not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> kernel, bias = fold.affine_before(np.ones((2, 1)), None, np.array([2.0, -1.0]), np.array([0.0, 0.5]))
      >>> print(kernel.T, bias)
      [[ 2. -1.]] [0.5]
    """
    ins, outs = axes_of(in_axes, kernel.ndim, "in_axes"), axes_of(out_axes, kernel.ndim, "out_axes")
    if set(ins) & set(outs):
        raise ValueError(
            f"in_axes={in_axes!r} and out_axes={out_axes!r} share an axis of a kernel of rank {kernel.ndim}."
        )
    check_bias(bias, outs, kernel)
    if groups != 1:
        scale, shift = (_of_groups(v, kernel, ins, outs, groups) for v in (scale, shift))
        placed = [None if v is None else along(v, (*ins, *outs), kernel, "scale") for v in (scale, shift)]
    else:
        named = (("scale", scale), ("shift", shift))
        placed = [None if v is None else along(v, ins, kernel, name) for name, v in named]
    scaled = kernel if placed[0] is None else kernel * placed[0]
    return scaled, added(bias, None if placed[1] is None else to_features(kernel * placed[1], outs))


def _of_groups(vector: Array | None, kernel: Array, ins: Sequence[int], outs: Sequence[int], groups: int):
    """Input features as (inputs of a group, outputs): each output reads those of its own group."""
    _checks.check_count("groups", groups, 1)
    if len(ins) != 1 or len(outs) != 1 or kernel.shape[outs[0]] % groups:
        raise ValueError(
            f"groups={groups} needs one input axis and one output axis that it divides; got axes {tuple(ins)} and "
            f"{tuple(outs)} of a kernel of shape {tuple(kernel.shape)}."
        )
    inputs, outputs = kernel.shape[ins[0]], kernel.shape[outs[0]]
    if vector is None:
        return None
    if tuple(vector.shape) != (groups * inputs,):
        raise ValueError(
            f"scale or shift has shape {tuple(vector.shape)}, expected ({groups * inputs},): {groups} groups of the "
            f"{inputs} input features of a kernel of shape {tuple(kernel.shape)}."
        )
    return vector.reshape(groups, inputs).repeat(outputs // groups, axis=0).T


def conv_pad_value(scale: Array, shift: Array) -> Array:
    r"""What to pad the input with where an affine map before a zero-padded convolution was folded: $-s / a$.

    Rule F3p. The unfolded network pads the map's output with 0; $-s/a$ is what the map takes to 0. Padding with zeros
    after the fold is wrong along the whole border. Pad by hand and let the convolution pad nothing (`"VALID"`).

    Args:
      scale: $a$ of the map, `(features,)`.
      shift: $s$.

    Returns:
      `(features,)`.

    Raises:
      ValueError: If some $a$ is 0: no value is taken to 0, keep the norm. Under `jit`, where values are not known, such
        features get an infinite one.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.conv_pad_value(np.array([2.0, -0.5]), np.array([1.0, 1.0])))
      [-0.5  2. ]
    """
    zeros = count_of(scale == 0)
    if zeros:
        raise ValueError(
            f"{zeros} of {scale.size} scales are 0: whatever the input is padded with, these features are not 0 behind "
            "the map. Keep this norm, or prune the features."
        )
    return -shift / scale
