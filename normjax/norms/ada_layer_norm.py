r"""Adaptive layer normalization, adaLN and adaLN-Zero (Peebles and Xie 2022): the condition writes scale and shift.

$$y = (1 + s(c)) \odot \mathrm{LN}(x) + t(c),\qquad (t, s, g) = \mathrm{SiLU}(c)\,W + w_0,\qquad
x \leftarrow x + g(c) \odot F(y)$$

$W, w_0$ start at zero, so a block with gates starts as the identity (adaLN-Zero). A DiT block has one linear layer of
six chunks for two sublayers, its last layer and LucidFlux two, STARFlow four (no gates): `ada_modulation` gives any
number. A transform owns the columns of one sublayer; the kernels of two transforms side by side are the block's.

State: that of the norm inside, none by default. Weights that feed it are as scale-invariant as the norm inside makes
them; scale and shift depend on the sample, so nothing folds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, default_init
from normjax.norms._modulate import along_features, at_least, given, linear, modulate
from normjax.norms.layer_norm import layer_norm
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.transform import NormTransform

Activation = Callable[[jax.Array], jax.Array]


def ada_modulation(
    condition: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    chunks: int = 2,
    activation: Activation | None = jax.nn.silu,
) -> tuple[jax.Array, ...]:
    r"""The chunks of $\mathrm{act}(c)\,W + w_0$, in order: for DiT's six, shift, scale, gate, and once more.

    Args:
      condition: $c$, of shape `(..., condition features)`.
      kernel: $W$, of shape `(condition features, chunks * features)`.
      bias: $w_0$, of shape `(chunks * features,)`, or `None`.
      chunks: Number of equal parts: 2, 3, 4 or 6 in published models.
      activation: $\mathrm{act}$, computed in at least float32; `None` for the condition itself.

    Returns:
      `chunks` arrays of shape `(..., features)`.

    Raises:
      ValueError: If the shapes do not fit, or the chunks do not divide the kernel's columns.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> shift, scale, gate = nj.ada_modulation(jnp.ones((2, 4)), jnp.zeros((4, 9)), None, chunks=3)
      >>> gate.shape
      (2, 3)

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """
    condition = jnp.asarray(condition)
    if chunks < 1 or kernel.shape[-1] % chunks:
        raise ValueError(f"chunks={chunks} does not divide the {kernel.shape[-1]} columns of a kernel {kernel.shape}.")
    if activation is not None:
        condition = activation(condition.astype(statistics_dtype(condition.dtype))).astype(condition.dtype)
    return tuple(jnp.split(linear(condition, kernel, bias, "condition"), chunks, axis=-1))


def ada_gate(
    params: Mapping[str, Any],
    x: jax.Array,
    condition: jax.Array,
    *,
    chunks: Sequence[str] = ("shift", "scale", "gate"),
    activation: Activation | None = jax.nn.silu,
    feature_axis: int = -1,
) -> jax.Array:
    r"""The gate $g(c)$ of an `ada_layer_norm` with a gate, broadcastable to what it multiplies: $x + g \odot F(y)$.

    Args:
      params: The transform's parameters.
      x: Its input, or anything of that shape, such as $F(y)$.
      condition: The condition that the norm read.
      chunks: As given to the norm.
      activation: As given to the norm.
      feature_axis: As given to the norm.

    Returns:
      The gate in the rank of `x`; zero for initial parameters.

    Raises:
      ValueError: If there is no gate among the chunks, or the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, x, c = nj.ada_layer_norm(chunks=("shift", "scale", "gate")), jnp.ones((2, 5, 3)), jnp.ones((2, 4))
      >>> params, _ = norm.init(None, x, condition=c)
      >>> y = norm.apply(params, {}, x, train=True, condition=c)[0]
      >>> bool((x + nj.ada_gate(params, x, c) * jnp.tanh(y) == x).all())
      True

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """
    if "gate" not in chunks:
        raise ValueError(f"there is no gate among chunks={tuple(chunks)}; make the norm with 'gate' among them.")
    return _placed(params, x, condition, tuple(chunks), activation, feature_axis)["gate"]


def _placed(params, x, condition, chunks: tuple[str, ...], activation, feature_axis: int) -> dict[str, jax.Array]:
    condition = at_least(condition, x)
    parts = ada_modulation(condition, params["kernel"], params.get("bias"), chunks=len(chunks), activation=activation)
    return {k: along_features(v, x, feature_axis, "condition") for k, v in zip(chunks, parts, strict=True)}


@method(
    "Adaptive layer normalization (adaLN, adaLN-Zero)",
    "Peebles and Xie 2022",
    "2212.09748",
    "conditional",
    context=("condition",),
    scale_invariance="joint",
)
def ada_layer_norm(
    norm: NormTransform | None = None,
    *,
    chunks: Sequence[str] = ("shift", "scale"),
    activation: Activation | None = jax.nn.silu,
    use_bias: bool = True,
    feature_axis: int = -1,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """A norm that a condition modulates; parameters `{"norm", "kernel", "bias"}`, context `condition=`.

    Args:
      norm: The norm inside, without scale and bias of its own; `None` is layer normalization with epsilon 1e-6.
      chunks: What the columns of the kernel are, in order: distinct names of `"shift"`, `"scale"`, `"gate"`. The gate
        is not applied here but read by `ada_gate`, because it multiplies what the sublayer makes of the output.
      activation: Applied to the condition before the linear layer; `None` for none.
      use_bias: Whether the linear layer has a bias.
      feature_axis: Where the features of `x` are.
      kernel_init: Initializer of the kernel; zeros by default.
      bias_init: Initializer of the linear layer's bias; zeros by default.
      precision: Dtype of the parameters.

    Returns:
      The transform; its `condition=` has shape `(..., condition features)` for each sample, each token, or for all.

    Raises:
      ValueError: If chunks are unknown or repeated, or the condition is missing or does not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x, c = jnp.array([[[1.0, 3.0]]]), jnp.ones((1, 4))
      >>> norm = nj.ada_layer_norm(nj.rms_norm(use_scale=False))
      >>> params, state = norm.init(None, x, condition=c)
      >>> norm.apply(params, state, x, train=True, condition=c)[0].shape, params["kernel"].shape
      ((1, 1, 2), (4, 4))

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """
    chunks = tuple(chunks)
    if len(set(chunks)) != len(chunks) or not {"shift", "scale"} & set(chunks) or set(chunks) - _CHUNKS:
        raise ValueError(
            f"chunks={chunks} must be distinct names out of {sorted(_CHUNKS)}, with a shift or a scale; for a layer "
            "that serves several sublayers use ada_modulation."
        )
    inside = layer_norm(axis=feature_axis, use_scale=False, use_bias=False) if norm is None else norm
    kernel_init, bias_init = default_init(kernel_init, 0.0), default_init(bias_init, 0.0)

    def init(rng, x, condition=None, **context):
        given("ada_layer_norm", "condition", condition)
        rngs = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        params, state = inside.init(rngs[0], x, condition=condition, **context)
        width = len(chunks) * x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        linear_params = {"kernel": kernel_init(rngs[1], (condition.shape[-1], width), precision.parameters)}
        if use_bias:
            linear_params["bias"] = bias_init(rngs[2], (width,), precision.parameters)
        return {"norm": params, **linear_params}, state

    def apply(params, state, x, *, train, mask=None, condition=None, **context):
        condition = given("ada_layer_norm", "condition", condition)
        y, state = inside.apply(params["norm"], state, x, train=train, mask=mask, condition=condition, **context)
        placed = _placed(params, x, condition, chunks, activation, feature_axis)
        return modulate(y, placed.get("scale"), placed.get("shift")), state

    return NormTransform(init, apply)


_CHUNKS = {"shift", "scale", "gate"}
