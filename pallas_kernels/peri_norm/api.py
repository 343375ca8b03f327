"""The public calls: `norm_add`, `norm_add_norm`."""

from collections.abc import Sequence
from typing import Literal

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.peri_norm import vjp


def norm_add(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None = None,
    *,
    kind: Literal["rms", "layer"] = "rms",
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""The norm of what a layer puts out, added to the residual stream: Peri-LN's output norm.

    $$h = r + N(x)\,(w + o)$$

    The norm is not rounded before it is added. Backward is one row norm's: the stream's cotangent is that of $h$.

    Args:
      x: Real floating array of any shape: the layer's output.
      residual: The stream $r$, of the shape of `x` and any real floating dtype.
      scale: $w$, of the shape of the axes, any real floating dtype; `None` multiplies nothing.
      kind: "rms", or "layer" for a layer normalization without bias.
      axis, epsilon, scale_offset, mesh, spec, interpret: As in `layer_norm`; `spec` is that of both.
      implementation: As in `layer_norm`: `None` means Triton backward on GPUs, and XLA everywhere else.

    Returns:
      $h$, like `residual`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, and if `residual` or `kind` does not fit.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> x, residual = jnp.array([[3.0, -3.0]]), jnp.array([[1.0, 1.0]])
      >>> print(pallas_kernels.norm_add(x, residual, jnp.array([1.0, 2.0]), epsilon=0.0))
      [[ 2. -1.]]

    References:
      Kim et al. 2025, [Peri-LN](https://arxiv.org/abs/2502.02732).
    """
    (h,) = vjp.norm_add(
        kind,
        x,
        residual,
        {"scale": scale},
        axis=axis,
        epsilon=epsilon,
        scale_offset=scale_offset,
        implementation=implementation,
        gpu_default=("xla", "triton"),
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return h


def norm_add_norm(
    x: jax.Array,
    residual: jax.Array,
    scale_out: jax.Array | None = None,
    scale_in: jax.Array | None = None,
    *,
    kind: Literal["rms", "layer"] = "rms",
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Peri-LN between two layers: the output norm of one, the addition, and the input norm of the next.

    $$h = r + N(x)\,(w_1 + o), \qquad y = N(h)\,(w_2 + o)$$

    The sum is rounded to its dtype before it is normalized, as if the two norms had been computed apart. A kernel reads
    $x$ and $r$ once and writes $h$ and $y$ once; backward it reads $x$, $h$ and both cotangents once.

    Args:
      x: Real floating array of any shape: the output of one layer.
      residual: The stream $r$, of the shape of `x` and any real floating dtype.
      scale_out: $w_1$, of the shape of the axes, any real floating dtype; `None` multiplies nothing.
      scale_in: $w_2$, as `scale_out`.
      kind: Of both norms: "rms", or "layer" for layer normalizations without bias.
      axis, epsilon, scale_offset, mesh, spec, interpret: As in `layer_norm`; `spec` is that of both tensors.
      implementation: As in `layer_norm`, except that `None` means Triton, forward too, on GPUs.

    Returns:
      `(h, y)`: the stream like `residual`, and the input of the next layer in the dtype of `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, and if `residual` or `kind` does not fit.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> x, residual = jnp.array([[3.0, -3.0]]), jnp.array([[1.0, 3.0]])
      >>> h, y = pallas_kernels.norm_add_norm(x, residual, epsilon=0.0)
      >>> print(h, y)
      [[2. 2.]] [[1. 1.]]

    References:
      Kim et al. 2025, [Peri-LN](https://arxiv.org/abs/2502.02732).
    """
    h, y = vjp.norm_add(
        kind,
        x,
        residual,
        {"scale_out": scale_out, "scale_in": scale_in},
        axis=axis,
        epsilon=epsilon,
        scale_offset=scale_offset,
        implementation=implementation,
        gpu_default=("triton", "triton"),
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return h, y
