"""The public call: `gated_rms_norm`. Forward and backward are the row norms', told to gate first or last."""

import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.row_norm.gate import Activation, Gate
from pallas_kernels.row_norm.vjp import row_norm

ACTIVATIONS: tuple[str, ...] = typing.get_args(Activation)
# As for the plain norms: XLA's forward pass is one kernel that reads each array once, its backward pass is not.
GPU_DEFAULT = ("xla", "triton")


def gated_rms_norm(
    x: jax.Array,
    gate: jax.Array,
    scale: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    activation: Activation = "silu",
    gate_first: bool = False,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""Root-mean-square normalization with a gate behind or before it, as XLA or as one kernel.

    $$y = \operatorname{RMSNorm}(x)\,(w + o)\,\phi(z) \qquad\text{or, gate first,}\qquad
      y = \operatorname{RMSNorm}\big(x\,\phi(z)\big)\,(w + o)$$

    The recurrent and linear-attention layers of language models end so: Qwen3-Next with silu and Kimi-Linear with
    sigmoid behind the norm, Mamba 2 with silu before it. Everything is computed in float32 and rounded once. For
    groups of features, normalize the last axis of `x` and `gate` reshaped to `(..., groups, features of a group)`. The
    gradient needs x, the gate and rstd, and recomputes the activation.

    Args:
      x: Real floating array of any shape.
      gate: $z$, of the shape of `x`, any real floating dtype.
      scale, axis, epsilon, scale_offset, implementation, mesh, spec, interpret: As in `rms_norm`; `spec` is that of
        `x` and `gate`.
      activation: $\phi$: "silu", "sigmoid", or "none", which multiplies by the gate itself.
      gate_first: Whether the gate multiplies before the mean square is taken.

    Returns:
      An array like `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, and if gate or activation do not fit.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> x, gate = jnp.array([[3.0, -3.0]]), jnp.zeros((1, 2))
      >>> print(pallas_kernels.gated_rms_norm(x, gate, activation="sigmoid", epsilon=0.0))
      [[ 0.5 -0.5]]

    References:
      Dao and Gu 2024, [Transformers are SSMs](https://arxiv.org/abs/2405.21060);
      Yang et al. 2024, [Gated Linear Attention Transformers](https://arxiv.org/abs/2312.06635).
    """
    if not hasattr(gate, "dtype") or not jnp.issubdtype(gate.dtype, jnp.floating):
        raise TypeError(f"gate must be a real floating array, got {getattr(gate, 'dtype', type(gate).__name__)}.")
    if gate.shape != x.shape:
        raise ValueError(f"x and gate must have one shape, got {x.shape} and {gate.shape}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; expected one of {ACTIVATIONS}.")
    (y,) = row_norm(
        "rms",
        (x, gate),
        scale,
        None,
        axis=axis,
        epsilon=epsilon,
        scale_offset=scale_offset,
        gate=Gate(activation, gate_first),
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return y
