"""The public calls: `layer_norm`, `rms_norm`, `crms_norm`."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.row_norm.vjp import row_norm

# On a GPU, XLA's forward pass is one kernel that reads x once; its backward pass reads twice to three times too much.
GPU_DEFAULT = ("xla", "triton")


def layer_norm(
    x: jax.Array,
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
) -> jax.Array:
    r"""Layer normalization, as XLA or as one kernel.

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\,(w + o) + b$$

    with mean and variance over `axis`. Statistics, parameters and sums over rows are float32 (float64 for a float64
    `x`); the variance is of centred values. The kernels read x once, and once more with dy for the gradient; they save
    mean and rstd, and keep nothing else than x. `jax.vmap`, `jax.checkpoint` and donated buffers work; forward-mode
    derivatives only where XLA runs.

    Args:
      x: Real floating array of any shape; float32, bfloat16 or float16 for a kernel.
      scale: $w$, of the shape of the axes, any real floating dtype; `None` multiplies nothing.
      bias: $b$, as `scale`.
      axis: The normalized axis, or several adjacent ones. None is transposed.
      epsilon: Added to the variance.
      scale_offset: $o$; 1.0 for a scale that is stored around zero.
      implementation: "xla", "mosaic_tpu" or "triton" run that, forward and backward, or fail. `None` takes XLA on CPUs
        and TPUs, and on GPUs XLA forward and Triton backward, by JAX's default backend.
      mesh: The mesh, in Auto mode, where a traced `x` does not know its sharding. In Explicit mode it does.
      spec: How `x` is split over `mesh`. Rows split: no collective forward, one all-reduce for the parameters'
        gradients. Features split: `None` runs XLA in a shard_map with one small all-reduce; a named kernel refuses.
      interpret: Runs the kernel in Pallas's interpreter, on any machine. Slow: for tests.

    Returns:
      An array like `x`.

    Raises:
      TypeError: If `x` or a parameter is not a real floating array.
      ValueError: If axis, shapes, epsilon, implementation or placement do not fit.
      NotImplementedError: If the named kernel cannot take the dtype, or the row is too wide for it.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> print(pallas_kernels.layer_norm(jnp.array([[1.0, 3.0]]), jnp.array([2.0, 2.0]), epsilon=0.0))
      [[-2.  2.]]
      >>> x = jnp.ones((4, 6))
      >>> pallas_kernels.layer_norm(x, implementation="mosaic_tpu", interpret=True).shape
      (4, 6)

    References:
      Ba et al. 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """
    (y,) = row_norm(
        "layer",
        (x,),
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
    return y


def rms_norm(
    x: jax.Array,
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
) -> jax.Array:
    r"""Root-mean-square normalization, as XLA or as one kernel.

    $$y = \frac{x}{\sqrt{\frac1n\sum_i x_i^2 + \epsilon}}\,(w + o) + b$$

    Args:
      x, scale, bias, axis, scale_offset, implementation, mesh, spec, interpret: As in `layer_norm`.
      epsilon: Added to the mean square.

    Returns:
      An array like `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> print(pallas_kernels.rms_norm(jnp.array([[3.0, -3.0]]), jnp.zeros(2), scale_offset=1.0, epsilon=0.0))
      [[ 1. -1.]]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """
    (y,) = row_norm(
        "rms",
        (x,),
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
    return y


def crms_norm(
    x: jax.Array,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""RMS normalization of a zero-mean vector that is stored without its last entry, as XLA or as one kernel.

    $$y = \frac{x}{\sqrt{\frac{1}{n+1}\left(\sum_i x_i^2 + \left(\sum_i x_i\right)^2\right) + \epsilon}}$$

    Args:
      x, axis, implementation, mesh, spec, interpret: As in `layer_norm`.
      epsilon: Under the root.

    Returns:
      An array like `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> whole = pallas_kernels.rms_norm(jnp.array([[1.0, 2.0, -3.0]]), epsilon=1e-5)
      >>> bool(jnp.allclose(pallas_kernels.crms_norm(jnp.array([[1.0, 2.0]])), whole[:, :2]))
      True

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    (y,) = row_norm(
        "crms",
        (x,),
        None,
        None,
        axis=axis,
        epsilon=epsilon,
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
    return y
