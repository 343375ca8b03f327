"""One dtype policy for every norm: where statistics, scales and casts happen, and where epsilon sits.

Real models disagree on four things that change a quarter of all bfloat16 outputs: the dtype of the
statistics, the order of "cast down" and "multiply by the scale", the output dtype when input and
parameters differ, and the place of epsilon. Each is a field here, never a constant in a norm's file.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

EpsilonMode = Literal["inside", "outside", "clamp"]
CastOrder = Literal["scale_then_cast", "cast_then_scale", "cast_then_multiply"]
OutputRule = Literal["input", "promote", "parameters"]


@dataclasses.dataclass(frozen=True)
class Precision:
    """Which dtype each stage of a normalization uses.

    Attributes:
      statistics: Dtype of means, variances and of the normalized value. `None` is float32, or float64
        where the input is float64. Running statistics always use the `None` rule: they are never rounded
        below float32, whatever this field says.
      output: Output dtype: `"input"` (the input's), `"promote"` (input and parameters promoted, Flax's
        rule), `"parameters"` (T5's rule), or a dtype.
      parameters: Dtype in which `init` creates scales and biases.
      cast_order: `"scale_then_cast"` multiplies by the scale in the wider of statistics and output dtype and rounds
        once (torch, Flax, Gemma, OLMo 2, GPT-OSS); `"cast_then_scale"` rounds the normalized value first and
        multiplies afterwards (Llama, Qwen, DeepSeek-V3, T5X); `"cast_then_multiply"` rounds the inverse root itself and
        multiplies in the output dtype (DeepSeek-V4's unweighted norm).
      narrow_offset: Whether an offset is added to the scale in the scale's own dtype (Nemotron, Muse Spark); otherwise
        it is added in at least float32 (Gemma, Qwen3-Next).

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.ones((2, 4), jnp.bfloat16)
      >>> nj.rms_normalize(x, jnp.ones(4), precision=nj.Precision(output="promote")).dtype
      dtype('float32')
    """

    statistics: Any = None
    output: Any = "input"
    parameters: Any = jnp.float32
    cast_order: CastOrder = "scale_then_cast"
    narrow_offset: bool = False

    def __post_init__(self):
        """Rejects values that would only fail, or silently differ, deep inside a traced function."""
        if self.cast_order not in get_args(CastOrder):
            raise ValueError(f"cast_order={self.cast_order!r} is unknown; expected one of {get_args(CastOrder)}.")
        for name in ("statistics", "output", "parameters"):
            value = getattr(self, name)
            if (name, value) == ("statistics", None) or (name == "output" and value in get_args(OutputRule)):
                continue
            if isinstance(value, str) and name == "output":
                raise ValueError(f"output={value!r} is unknown; expected a dtype or one of {get_args(OutputRule)}.")
            if value is None or not jnp.issubdtype(jnp.dtype(value), jnp.floating):
                raise TypeError(f"expected a floating dtype for {name}, got {value!r}.")


# The published conventions, by the family that made each of them known.
TORCH = Precision()
FLAX = Precision(output="promote")
LLAMA = Precision(output="promote", cast_order="cast_then_scale")
T5 = Precision(output="parameters", cast_order="cast_then_scale")


def statistics_dtype(x_dtype: Any, precision: Precision = TORCH) -> Any:
    """Returns the dtype of the statistics of an input of dtype `x_dtype`: at least float32 by default."""
    if precision.statistics is not None:
        return jnp.dtype(precision.statistics)
    return promote(x_dtype, jnp.float32)


def promote(*dtypes: Any) -> Any:
    """Returns the dtype that all of `dtypes` promote to, also where implicit promotion is switched off."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def output_dtype(x_dtype: Any, parameters: tuple[jax.Array | None, ...], precision: Precision) -> Any:
    """Returns the dtype of the output of a norm whose scale and bias are `parameters`."""
    dtypes = [p.dtype for p in parameters if p is not None]
    if precision.output == "input" or (precision.output in get_args(OutputRule) and not dtypes):
        return x_dtype
    if precision.output == "promote":
        return promote(x_dtype, *dtypes)
    if precision.output == "parameters":
        return promote(*dtypes)
    return jnp.dtype(precision.output)


def inverse_root(moment: jax.Array, epsilon: float, mode: EpsilonMode = "inside") -> jax.Array:
    r"""The factor that a norm multiplies by, from the mean square it measured.

    $1/\sqrt{m + \epsilon}$ inside, $1/(\sqrt m + \epsilon)$ outside, $1/\max(\sqrt m, \epsilon)$ clamp.
    Where the denominator is zero the factor is 0, so that a constant row gives 0 and not NaN.

    Args:
      moment: Non-negative variance or mean square, any shape.
      epsilon: Non-negative number.
      mode: Where epsilon sits.

    Returns:
      The factor, same shape and dtype as `moment`.

    Raises:
      ValueError: If the mode is unknown.
    """
    if mode not in get_args(EpsilonMode):
        raise ValueError(f"epsilon_mode={mode!r} is unknown; expected one of {get_args(EpsilonMode)}.")
    eps, least = jnp.asarray(epsilon, moment.dtype), float(jnp.finfo(moment.dtype).tiny)
    if epsilon < least:
        return _inverse_root_or_zero(moment)
    if mode == "inside":
        return jax.lax.rsqrt(moment + eps)
    if mode == "clamp" and epsilon**2 >= least:
        return jax.lax.rsqrt(jnp.maximum(moment, eps * eps))
    root = moment * _inverse_root_or_zero(moment)
    return 1 / (root + eps if mode == "outside" else jnp.maximum(root, eps))


@jax.custom_jvp
def _inverse_root_or_zero(moment: jax.Array) -> jax.Array:
    # A select would keep the CPU's compiler from one pass over a row. Below its least normal number float32 is 0;
    # float16 is computed in float32.
    info = jnp.finfo(moment.dtype)
    least = info.smallest_subnormal if moment.dtype == jnp.float16 else info.tiny
    return jnp.sign(moment) * jax.lax.rsqrt(jnp.maximum(moment, least))


@_inverse_root_or_zero.defjvp
def _inverse_root_or_zero_jvp(primals, tangents):
    # The infinite derivative at 0 would become 0 * inf = NaN. The order of the factors: a cube overflows before them.
    root = _inverse_root_or_zero(*primals)
    return root, -0.5 * root * (root * (root * tangents[0]))


def tangent_gain(moment: jax.Array, epsilon: float, mode: EpsilonMode) -> jax.Array | float:
    r"""How much of the radial tangent the norm removes: $k = -2 r'(m) / r(m)^3$ for the factor $r$.

    1 where epsilon is inside (the whole formula is then exact with the epsilon-damped value); 0 where a
    clamp is active, because there the norm is linear.
    """
    if mode == "inside":
        return 1.0
    nonzero = moment > 0
    root = jnp.sqrt(jnp.where(nonzero, moment, 1))
    eps = jnp.asarray(epsilon, moment.dtype)
    if mode == "outside":
        return jnp.where(nonzero, (root + eps) / root, 0)
    return jnp.where(nonzero & (root >= eps), 1, 0).astype(moment.dtype)


def scale_shift_cast(
    normalized: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    x_dtype: Any,
    precision: Precision,
    scale_offset: float = 0.0,
) -> jax.Array:
    r"""$y = (\text{offset} + \text{scale}) \odot \hat x + \text{bias}$, rounded where the policy says.

    Args:
      normalized: The normalized value in the statistics dtype.
      scale: Broadcastable scale, or `None`.
      bias: Broadcastable bias, or `None`.
      x_dtype: Dtype of the norm's input.
      precision: The policy.
      scale_offset: Added to the scale (1 for Gemma's `1 + w`), in the dtype that the policy says.

    Returns:
      The output in the policy's output dtype.
    """
    out = output_dtype(x_dtype, (scale, bias), precision)
    if precision.cast_order == "scale_then_cast":
        # Statistics may be narrower than the output (bfloat16 under float32 parameters): never round down in between.
        dtype = promote(normalized.dtype, out)
        y = normalized.astype(dtype)
        y = y if scale is None else y * offset_scale(scale, scale_offset, dtype, precision).astype(dtype)
        return (y if bias is None else y + bias.astype(dtype)).astype(out)
    # Llama rounds to the input's dtype even where float32 parameters promote the product afterwards.
    rounded = x_dtype if precision.output in ("input", "promote") else out
    y = normalized.astype(rounded).astype(out)
    if scale is not None:
        y = y * offset_scale(scale, scale_offset, normalized.dtype, precision).astype(out)
    return y if bias is None else y + bias.astype(out)


def offset_scale(scale: jax.Array, scale_offset: float, dtype: Any, precision: Precision = TORCH) -> jax.Array:
    """Returns `scale_offset + scale`, in the scale's own dtype if the policy says so, else at least in `dtype`."""
    if scale_offset == 0:
        return scale
    wide = scale.dtype if precision.narrow_offset else promote(scale.dtype, dtype)
    return scale.astype(wide) + jnp.asarray(scale_offset, wide)
