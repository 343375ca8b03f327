r"""The linear layer that makes scales, shifts and gates of a condition (adaLN; Peebles and Xie 2022).

$$(t, s, g) = \mathrm{SiLU}(c)\,W + w_0$$

`ada_layer_norm` owns the columns of one sublayer and applies shift and scale; a gate multiplies what the sublayer makes
of its output, $x + g \odot F(y)$, and is read by `ada_gate`. A DiT block has one linear layer of six chunks for two
sublayers, its last layer and LucidFlux two, STARFlow four (no gates).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.norms._modulate import along_features, at_least, linear
from normjax.precision import statistics_dtype

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
    return placed_chunks(params, x, condition, tuple(chunks), activation, feature_axis)["gate"]


def placed_chunks(params, x, condition, chunks: tuple[str, ...], activation, feature_axis: int) -> dict[str, jax.Array]:
    """The named chunks of the modulation that `params` make of a condition, on the axes of `x`."""
    condition = at_least(condition, x)
    parts = ada_modulation(condition, params["kernel"], params.get("bias"), chunks=len(chunks), activation=activation)
    return {k: along_features(v, x, feature_axis, "condition") for k, v in zip(chunks, parts, strict=True)}
