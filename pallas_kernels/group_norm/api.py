"""The public calls: `group_norm`, `instance_norm`."""

import operator

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.group_norm.vjp import group_norm as _group_norm

# By the bytes of the compiled programs the kernels win on an H100, 1.3 times forward and 1.6 times backward, but they
# have not been timed on one.
GPU_DEFAULT = ("xla", "xla")


def group_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""Group normalization of a channels-last feature map, as XLA or as kernels.

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\,w + b$$

    with mean and variance over the space and the channels of a group of each sample. Statistics, parameters and sums
    over the batch are float32 (float64 for a float64 `x`); the variance is of centred values, those of parts of a map
    are merged as (count, mean, sum of squares). The TPU kernels read x once, and once more with dy for the gradient,
    where a sample's map fits into VMEM, and twice where it does not. On a GPU, where a map is larger than what a
    multiprocessor holds, kernels take the sums and XLA the elementwise rest. Saved are x, mean and rstd. `jax.vmap`,
    `jax.checkpoint` and donated buffers work; forward-mode derivatives only where XLA runs.

    Args:
      x: Real floating array (batch, *space, channels); float32, bfloat16 or float16 for a kernel. A TPU kernel sees it
        as XLA lays it out by default: channels along the lanes, or the width where that pads less. What has another
        layout, as a map whose width is no multiple of 8 may have, is copied before and after. Its memory comes in tiles
        of 128 lanes: 320 channels take as much as 384, 1.2 times their bytes, for a kernel and for XLA alike.
      scale: $w$, of shape (channels,), any real floating dtype; `None` multiplies nothing.
      bias: $b$, as `scale`.
      num_groups: Groups of neighbouring channels; divides their number.
      epsilon: Added to the variance.
      implementation: "xla", "mosaic_tpu" or "triton" run that, forward and backward, or fail. `None` takes XLA, which
        fuses a norm between convolutions into them; a kernel moves fewer bytes where the norm stands alone.
      mesh: The mesh, in Auto mode, where a traced `x` does not know its sharding. In Explicit mode it does.
      spec: How `x` is split over `mesh`. Batch split: no collective forward, one all-reduce for the parameters'
        gradients. Channels split by whole groups: no collective. Space split: `None` runs XLA in a shard_map with one
        small all-reduce; a named kernel refuses.
      interpret: Runs the kernel in Pallas's interpreter, on any machine. Slow: for tests.

    Returns:
      An array like `x`.

    Raises:
      TypeError: If `x` or a parameter is not a real floating array.
      ValueError: If groups, shapes, epsilon, implementation or placement do not fit.
      NotImplementedError: If the named kernel cannot take the dtype, or a row of the map is too large for it.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> x = jnp.array([[[1.0, 3.0, 0.0, 8.0]]])
      >>> print(pallas_kernels.group_norm(x, num_groups=2, epsilon=0.0))
      [[[-1.  1. -1.  1.]]]
      >>> x = jnp.ones((2, 4, 4, 6))
      >>> pallas_kernels.group_norm(x, num_groups=3, implementation="mosaic_tpu", interpret=True).shape
      (2, 4, 4, 6)

    References:
      Wu and He 2018, [Group Normalization](https://arxiv.org/abs/1803.08494).
    """
    return _group_norm(
        x,
        scale,
        bias,
        num_groups=operator.index(num_groups),
        epsilon=epsilon,
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )


def instance_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-5,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""Instance normalization of a channels-last feature map: group normalization with a group for each channel.

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\,w + b$$

    with mean and variance over the space of each channel of each sample.

    Args:
      x, scale, bias, epsilon, implementation, mesh, spec, interpret: As in `group_norm`.

    Returns:
      An array like `x`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `group_norm`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> print(pallas_kernels.instance_norm(jnp.array([[[1.0, 5.0], [3.0, 9.0]]]), epsilon=0.0))
      [[[-1. -1.]
        [ 1.  1.]]]

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """
    return _group_norm(
        x,
        scale,
        bias,
        num_groups=None,
        epsilon=epsilon,
        implementation=implementation,
        gpu_default=GPU_DEFAULT,
        mesh=mesh,
        spec=spec,
        interpret=interpret,
    )
