r"""Gated RMS normalization, as the recurrent and linear-attention layers of language models end.

$$y = \gamma \odot \text{RMS}(x \odot \phi(z)) \quad\text{(Mamba 2)},\qquad
y = \big(\gamma \odot \text{RMS}(x)\big) \odot \phi(z) \quad\text{(Qwen3-Next, Kimi-Linear)}$$

The gate $z$ is the context `gate=`, shaped like $x$; $\phi$ is silu, for Kimi-Linear sigmoid, and is computed in at
least float32. The two orders are different functions. What the models have in bfloat16, bit by bit:

* Mamba 2: `gate_first=True, precision=LLAMA`, with `group_size`;
* Qwen3-Next: `precision=Precision(cast_order="cast_then_scale")`: the scaled value is rounded before the gate;
* Kimi-Linear: `activation=jax.nn.sigmoid`, rounded once, at the end.

No state. Weights that feed $x$ are jointly scale-invariant up to epsilon (per group, where there are groups).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine, affine_inits, affine_params
from normjax.norms._context import require
from normjax.norms.rms_norm import rms_normalize
from normjax.precision import TORCH, Precision, output_dtype, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


def gated_rms_normalize(
    x: jax.Array,
    gate: jax.Array,
    scale: jax.Array | None = None,
    *,
    gate_first: bool = False,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    group_size: int | None = None,
    axis: int = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Gated RMS normalization of an array: $y = \gamma\,\text{RMS}(x)\,\phi(z)$, or the gate first.

    Args:
      x: Floating array of any shape.
      gate: $z$, floating, shaped like `x`.
      scale: $\gamma$, of shape `(features,)`, or `None` for 1.
      gate_first: Whether the gate multiplies before the mean square is taken.
      activation: $\phi$, applied to the gate in at least float32.
      group_size: Features per contiguous group, each with its own mean square; `None` is one group.
      axis: The axis of the features.
      epsilon: Non-negative number inside the root.
      mask: Broadcastable to `x`; zeros do not enter the statistics.
      precision: Dtypes and cast order; with the gate last, the output dtype is that after the gate.

    Returns:
      The gated, normalized array, shaped like `x`.

    Raises:
      TypeError: If `x` or the gate is not floating.
      ValueError: If gate, axis, groups, mask, scale or epsilon do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x, gate = jnp.array([[3.0, -3.0]]), jnp.zeros((1, 2))
      >>> print(nj.gated_rms_normalize(x, gate, activation=jax.nn.sigmoid).round(3))
      [[ 0.5 -0.5]]

    References:
      Dao and Gu 2024, [Transformers are SSMs](https://arxiv.org/abs/2405.21060).
    """
    if gate.shape != x.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)}, expected that of the input, {tuple(x.shape)}.")
    if precision.cast_order == "cast_then_multiply":
        raise ValueError("a gated RMS norm has no cast_order='cast_then_multiply'; choose one of the other two.")
    axes = _checks.canonical_axes((axis,), x.ndim)
    for array in (x, gate):
        _checks.check_input(array, axes)
    wide = statistics_dtype(x.dtype, precision)
    # Both are cleaned behind the mask: each is a factor in the gradient of the other.
    (values, _), (gates, _) = prepare(x, mask, wide), prepare(gate, mask, wide)
    factor = activation(gates)
    whole = dataclasses.replace(precision, output=wide, cast_order="scale_then_cast")
    values = values * factor if gate_first else values
    normalized = rms_normalize(values, axis=axis, group_size=group_size, epsilon=epsilon, mask=mask, precision=whole)
    if gate_first:
        return affine(normalized, x, scale, None, axes, precision)
    rounds_before = precision.cast_order == "cast_then_scale"
    inner = dataclasses.replace(precision, output="promote") if rounds_before else whole
    scaled = affine(normalized, x, scale, None, axes, inner)
    return (scaled.astype(wide) * factor).astype(output_dtype(x.dtype, (scale,), precision))


@method(
    "Gated RMS normalization",
    "Dao and Gu 2024",
    "2405.21060",
    "token",
    context=("gate",),
    folds="affine",
    scale_invariance="joint",
)
def gated_rms_norm(
    *,
    gate_first: bool = False,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    group_size: int | None = None,
    axis: int = -1,
    epsilon: float = 1e-6,
    use_scale: bool = True,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Gated RMS normalization as a transform; parameters `{"scale"}`, context `gate=`, no state.

    Args:
      gate_first, activation, group_size, axis, epsilon, precision: As in `gated_rms_normalize`.
      use_scale: Whether there is a scale.
      scale_init: Initializer of the scale; ones by default.

    Returns:
      The transform; its `apply` raises `ValueError` without `gate=`.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> mamba2 = nj.gated_rms_norm(gate_first=True, group_size=2)
      >>> x = jnp.array([[1.0, 1.0, 9.0, -9.0]])
      >>> params, state = mamba2.init(None, x)
      >>> print(mamba2.apply(params, state, x, train=True, gate=jnp.ones_like(x))[0].round(3))
      [[ 1.  1.  1. -1.]]

    References:
      Dao and Gu 2024, [Transformers are SSMs](https://arxiv.org/abs/2405.21060).
    """
    _checks.check_epsilon(epsilon)
    options: dict[str, Any] = {"gate_first": gate_first, "activation": activation, "group_size": group_size}
    options |= {"axis": axis, "epsilon": epsilon, "precision": precision}

    def fn(params, x, *, mask, gate=None, **context):
        del context
        gate = require(gate, "gated_rms_norm", "gate", "an array shaped like x")
        return gated_rms_normalize(x, gate, params.get("scale"), mask=mask, **options)

    inits = affine_inits(scale_init, None, use_scale, use_bias=False)
    return stateless(fn, affine_params((axis,), "axis", precision, inits))
