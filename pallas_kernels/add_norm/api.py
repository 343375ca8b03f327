"""The public calls: `add_layer_norm`, `add_rms_norm`. Forward and backward are the row norms', told to add first."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.row_norm.vjp import row_norm

# On a GPU, XLA takes 5 passes over the array forward and 6 backward where 4 are enough.
GPU_DEFAULT = ("triton", "triton")


def add_layer_norm(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""The sum of a residual stream and what a layer adds to it, and the layer normalization of that sum.

    $$h = x + r, \qquad y = \operatorname{LN}(h)\,(w + o) + b$$

    The sum is rounded to its dtype before it is normalized, as if it had been computed apart; the gradient needs it
    and not $x$ or $r$. Its own cotangent is added in the backward kernel.

    Args:
      x: Real floating array of any shape: what is added.
      residual: The stream, of the shape of `x`; its dtype is that of `x` or a wider one.
      scale, bias, axis, epsilon, scale_offset, mesh, spec, interpret: As in `layer_norm`; `spec` is that of both.
      implementation: As in `layer_norm`, except that `None` means Triton, forward too, on GPUs.

    Returns:
      `(h, y)`: the sum in the dtype of `residual` and its norm in that of `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, and if `residual` does not fit `x`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> h, y = pallas_kernels.add_layer_norm(jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 3.0]]), epsilon=0.0)
      >>> print(h, y)
      [[2. 4.]] [[-1.  1.]]
    """
    _check_residual(x, residual)
    total, y = row_norm(
        "layer",
        (x, residual),
        scale,
        bias,
        axis=axis,
        epsilon=epsilon,
        scale_offset=scale_offset,
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return total, y


def add_rms_norm(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""The sum of a residual stream and what a layer adds to it, and the RMS normalization of that sum.

    $$h = x + r, \qquad y = \operatorname{RMSNorm}(h)\,(w + o) + b$$

    Args:
      x, residual, scale, bias, axis, scale_offset, implementation, mesh, spec, interpret: As in `add_layer_norm`.
      epsilon: Added to the mean square.

    Returns:
      `(h, y)`, as `add_layer_norm`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `add_layer_norm`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> h, y = pallas_kernels.add_rms_norm(jnp.array([[1.0, -2.0]]), jnp.array([[1.0, 0.0]]), epsilon=0.0)
      >>> print(h, y)
      [[ 2. -2.]] [[ 1. -1.]]
    """
    _check_residual(x, residual)
    total, y = row_norm(
        "rms",
        (x, residual),
        scale,
        bias,
        axis=axis,
        epsilon=epsilon,
        scale_offset=scale_offset,
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return total, y


def _check_residual(x: jax.Array, residual: jax.Array) -> None:
    if x.shape != residual.shape:
        raise ValueError(f"x and residual must have one shape, got {x.shape} and {residual.shape}.")
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, residual)):
        raise TypeError(f"expected real floating arrays, got {x.dtype} and {residual.dtype}; cast them first.")
    if x.dtype != residual.dtype and x.dtype.itemsize >= residual.dtype.itemsize:
        raise TypeError(
            f"the sum has the residual's dtype, {residual.dtype}, which cannot hold x of {x.dtype}; cast one of them."
        )
