r"""Root-mean-square normalization (Zhang and Sennrich 2019): layer normalization without the centring.

$$y = \gamma \odot \frac{x}{\sqrt{\langle x^2 \rangle + \epsilon}}$$

The authors' torch file puts epsilon outside the root, $x / (\sqrt{\langle x^2\rangle} + \epsilon)$, their TensorFlow
file inside; everybody since has it inside. Gemma stores the scale around zero (`scale_offset=1`), Llama rounds before
the scale, OLMo 2 after it: `normjax.precision` names them. Without a scale (`use_scale=False`) it is what Llama 4 calls
an L2 norm, NanoChat's QK-norm and Gemma 4's norm of values; Qwen4 takes a mean square per group (`group_size`). No
state. Weights that feed it are scale-invariant up to epsilon.
"""

from typing import Any

import jax

import pallas_kernels
from normjax import _checks
from normjax._method import method
from normjax.moments import standardize, variance
from normjax.norms._affine import Initializer, affine, affine_inits, affine_params, multiplied
from normjax.norms._groups import group_axes, split_groups
from normjax.norms._kernels import Implementation, runs_kernel
from normjax.precision import TORCH, EpsilonMode, Precision, inverse_root, statistics_dtype
from normjax.reductions import AxisName, prepare, standardization
from normjax.transform import NormTransform, stateless


def rms_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: _checks.Axes = -1,
    feature_axes: _checks.Axes | None = None,
    group_size: int | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    scale_offset: float = 0.0,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> jax.Array:
    r"""RMS normalization of an array: $y = (o + \gamma)\, x / \sqrt{\langle x^2\rangle + \epsilon} + \beta$.

    Args:
      x: Floating array of any shape.
      scale: $\gamma$, of the shape of the feature axes, or `None` for 1.
      bias: $\beta$, likewise, or `None` for 0.
      axis: Axes over which the mean square is taken.
      feature_axes: Axes on which scale and bias live; `None` means `axis`.
      group_size: Cuts the single axis into contiguous groups of this many features, each with its own mean square;
        `None` is one group.
      epsilon: Non-negative number. 1e-6 as in Flax and T5; Llama 3 and OLMo 2 have 1e-5.
      epsilon_mode: Where epsilon sits: `"inside"` the root, `"outside"`, or as a `"clamp"` of the root.
      scale_offset: $o$; 1 for Gemma's weights stored around zero.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      axis_name: Mapped axis over which the normalized axes are sharded.
      axis_index_groups: Groups within that mapped axis.
      precision: Dtypes and cast order, e.g. `normjax.precision.LLAMA`.
      implementation: `"mosaic_tpu"` or `"triton"` run that kernel of `pallas_kernels`, forward and backward, or raise;
        `None` is the formula in `jax.numpy`, which XLA fuses into what is beside it.

    Returns:
      The normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If axes, groups, mask, parameters or epsilon do not fit.
      NotImplementedError: If a kernel is named that lacks what the call asks for.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.rms_normalize(jnp.array([[3.0, -3.0]])).round(3))
      [[ 1. -1.]]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """
    refused = {"mask": mask is not None, "axis_name": axis_name is not None, "feature_axes": feature_axes is not None}
    refused |= {"epsilon_mode": epsilon_mode != "inside", "precision": precision != TORCH}
    if runs_kernel(implementation, **refused, group_size=group_size is not None):
        own = {"axis": axis, "epsilon": epsilon, "scale_offset": scale_offset, "implementation": implementation}
        return pallas_kernels.rms_norm(x, scale, bias, **own)
    axes = _checks.canonical_axes(axis, x.ndim)
    features = axes if feature_axes is None else _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    grouped, grouped_mask = x, mask
    if group_size is not None:
        if len(axes) != 1:
            raise ValueError(f"group_size={group_size} needs a single axis, got axis={axis!r}.")
        if mask is not None:
            _checks.check_mask(mask, x.shape)
        grouped, grouped_mask = split_groups(x, mask, axes[0], group_size=group_size)
        axes = group_axes(axes, axes[0])
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    spec = standardization(grouped, axes, epsilon=epsilon, epsilon_mode=epsilon_mode, centre=False, **mapped)
    values, grouped_mask = prepare(grouped, grouped_mask, statistics_dtype(x.dtype, precision))
    normalized, moments = standardize(values, grouped_mask, spec)
    if precision.cast_order == "cast_then_multiply":
        factor = inverse_root(variance(moments), epsilon, epsilon_mode)
        normalized, precision = multiplied(values, factor, x.dtype, (scale, bias), precision)
    return affine(normalized.reshape(x.shape), x, scale, bias, features, precision, scale_offset)


@method(
    "Root mean square layer normalization",
    "Zhang and Sennrich 2019",
    "1910.07467",
    "token",
    folds="affine",
    scale_invariance="joint",
)
def rms_norm(
    *,
    axis: _checks.Axes = -1,
    feature_axes: _checks.Axes | None = None,
    group_size: int | None = None,
    epsilon: float = 1e-6,
    epsilon_mode: EpsilonMode = "inside",
    use_scale: bool = True,
    use_bias: bool = False,
    scale_offset: float = 0.0,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: AxisName = None,
    axis_index_groups=None,
    precision: Precision = TORCH,
    implementation: Implementation | None = None,
) -> NormTransform:
    """RMS normalization as a transform; parameters `{"scale"}` (and `"bias"` if asked for), no state.

    Args:
      axis, feature_axes, group_size, epsilon, epsilon_mode: As in `rms_normalize`.
      use_scale, use_bias: Whether there is a scale, and a bias.
      scale_offset: Added to the scale; the scale then starts at `1 - scale_offset`.
      scale_init, bias_init: Initializers, `f(rng, shape, dtype)`; the bias starts at 0.
      axis_name, axis_index_groups, precision, implementation: As in `rms_normalize`.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> gemma = nj.rms_norm(scale_offset=1.0)
      >>> params, _ = gemma.init(None, jnp.ones((2, 4)))
      >>> print(params["scale"])
      [0. 0. 0. 0.]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """
    _checks.check_epsilon(epsilon)
    inits = affine_inits(scale_init, bias_init, use_scale, use_bias, 1.0 - scale_offset)
    options: dict[str, Any] = {"axis": axis, "feature_axes": feature_axes, "group_size": group_size}
    options |= {"epsilon": epsilon, "epsilon_mode": epsilon_mode, "scale_offset": scale_offset}
    options |= {"implementation": implementation}
    options |= {"axis_name": axis_name, "axis_index_groups": axis_index_groups, "precision": precision}

    def fn(params, x, *, mask, **context):
        del context
        return rms_normalize(x, params.get("scale"), params.get("bias"), mask=mask, **options)

    axes, name = (axis, "axis") if feature_axes is None else (feature_axes, "feature_axes")
    return stateless(fn, affine_params(axes, name, precision, inits))
