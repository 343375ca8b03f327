r"""Adaptive layer normalization, adaLN and adaLN-Zero (Peebles and Xie 2022): the condition writes scale and shift.

$$y = (1 + s(c)) \odot \mathrm{LN}(x) + t(c),\qquad (t, s, g) = \mathrm{SiLU}(c)\,W + w_0,\qquad
x \leftarrow x + g(c) \odot F(y)$$

$W, w_0$ start at zero, so a block with gates starts as the identity (adaLN-Zero). A transform owns the columns of one
sublayer; the kernels of two transforms side by side are the block's, whose chunks `ada_modulation` gives in any number.

State: that of the norm inside, none by default. Weights that feed it are as scale-invariant as the norm inside makes
them; scale and shift depend on the sample, so nothing folds.
"""

from collections.abc import Sequence

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, default_init
from normjax.norms._context import require
from normjax.norms._modulate import modulate
from normjax.norms.ada_modulation import Activation, placed_chunks
from normjax.norms.layer_norm import layer_norm
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform

_CHUNKS = {"shift", "scale", "gate"}


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
      kernel_init, bias_init: Initializers of the linear layer; zeros by default.
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
    needed = "ada_layer_norm", "condition", "an array of shape (..., condition features)"

    def init(rng, x, condition=None, **context):
        condition = require(condition, *needed)
        rngs = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        params, state = inside.init(rngs[0], x, condition=condition, **context)
        width = len(chunks) * x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        linear_params = {"kernel": kernel_init(rngs[1], (condition.shape[-1], width), precision.parameters)}
        if use_bias:
            linear_params["bias"] = bias_init(rngs[2], (width,), precision.parameters)
        return {"norm": params, **linear_params}, state

    def apply(params, state, x, *, train, mask=None, condition=None, **context):
        condition = require(condition, *needed)
        y, state = inside.apply(params["norm"], state, x, train=train, mask=mask, condition=condition, **context)
        placed = placed_chunks(params, x, condition, chunks, activation, feature_axis)
        return modulate(y, placed.get("scale"), placed.get("shift")), state

    return NormTransform(init, apply)
