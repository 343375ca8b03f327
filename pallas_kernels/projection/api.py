"""The public calls: `project`, `update_and_project`, `deferred_update`."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.projection import call


def project(
    weight: jax.Array,
    radius: jax.typing.ArrayLike,
    *,
    axis: int | Sequence[int] | None = None,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""A weight back at its radius, as XLA or as one kernel.

    $$w' = r\,\frac{w}{\lVert w \rVert}$$

    Norms are float32 sums (float64 for a float64 weight). A norm or radius that is zero, or a norm that overflows,
    leaves its weights as they are.

    Args:
      weight: Real floating array of at least one dimension; float32, bfloat16 or (triton) float16 for a kernel.
      radius: $r$: one number, or one for each norm, of the shape of the axes that are left.
      axis: Adjacent axes of one norm: the matrices of stacked layers, the rows or columns of a matrix; `None` is all.
      implementation: "xla", "mosaic_tpu" or "triton" run that or fail. `None` takes XLA, everywhere.
      mesh, spec: As in `layer_norm`, for a kernel: how `weight` is split. Its norms must not be.
      interpret: Runs the kernel in Pallas's interpreter, on any machine. Slow: for tests.

    Returns:
      $w'$, like `weight`.

    Raises:
      TypeError: If an array is not a real floating one.
      ValueError: If axis, shapes, implementation or placement do not fit.
      NotImplementedError: If it is differentiated, or the named kernel cannot take the dtype or the axes.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> print(pallas_kernels.project(jnp.array([[3.0, 4.0], [0.0, 2.0]]), 1.0, axis=-1))
      [[0.6 0.8]
       [0.  1. ]]

    References:
      Lyle et al. 2024, [Normalization and effective learning rates](https://arxiv.org/abs/2407.01800).
    """
    return call.project(
        weight, None, radius, axis=axis, implementation=implementation, mesh=mesh, spec=spec, interpret=interpret
    )


def update_and_project(
    weight: jax.Array,
    update: jax.Array,
    radius: jax.typing.ArrayLike,
    *,
    axis: int | Sequence[int] | None = None,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> jax.Array:
    r"""A weight after its update, back at its radius, as XLA or as one kernel.

    $$w' = r\,\frac{w + u}{\lVert w + u \rVert}$$

    The sum is not rounded before it is projected. XLA reads $w$ and $u$ twice, once for the norm. A kernel reads them
    once where a norm is that of a row, of a column, or of a matrix whose sum fits into VMEM in float32; elsewhere it
    reads them twice too. Between the update's own arithmetic and this, a kernel is a barrier where XLA has none: hence
    the choice of XLA by default.

    Args:
      weight, radius, axis, implementation, mesh, spec, interpret: As in `project`.
      update: $u$, of the shape of the weight and any real floating dtype.

    Returns:
      $w'$, like `weight`.

    Raises:
      TypeError, ValueError, NotImplementedError: As `project`.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> print(pallas_kernels.update_and_project(jnp.array([1.0, 4.0]), jnp.array([2.0, 0.0]), 10.0))
      [6. 8.]

    References:
      Lyle et al. 2024, [Normalization and effective learning rates](https://arxiv.org/abs/2407.01800).
    """
    return call.project(
        weight, update, radius, axis=axis, implementation=implementation, mesh=mesh, spec=spec, interpret=interpret
    )


def deferred_update(
    weight: jax.Array,
    factor: jax.typing.ArrayLike,
    update: jax.Array,
    radius: jax.typing.ArrayLike,
    *,
    axis: int | Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""An update whose projection waits: the weight that is meant is the stored one times its factor.

    $$w' = f w + u, \qquad f' = \frac{r}{\lVert w' \rVert}$$

    One read and one write even for the norm of a whole matrix: $f' w'$ is what `update_and_project` makes of $f w$, and
    the next read of $w'$ applies $f'$, after a matrix product where it is one number. Where the function ignores a
    weight's norm, it may ignore the factor too, as long as gradients are those at $f' w'$. XLA makes one pass of it on
    TPU and GPU, so that there is no kernel to choose.

    Args:
      weight, radius, axis: As in `project`.
      factor: $f$, shaped as `radius`; 1 at first.
      update: $u$, of the shape of the weight and any real floating dtype.

    Returns:
      `(weight, factor)`: $w'$ like `weight`, and $f'$, float32 (float64 for a float64 weight) and one for each norm.

    Raises:
      TypeError: If an array is not a real floating one.
      ValueError: If axis or shapes do not fit.
      NotImplementedError: If it is differentiated.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> w, f = pallas_kernels.deferred_update(jnp.array([0.5, 2.0]), 2.0, jnp.array([2.0, 0.0]), 10.0)
      >>> print(w, f, f * w)
      [3. 4.] 2.0 [6. 8.]

    References:
      Lyle et al. 2024, [Normalization and effective learning rates](https://arxiv.org/abs/2407.01800).
    """
    return call.deferred(weight, factor, update, radius, axis)
