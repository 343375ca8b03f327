"""TrAct: the first layer is trained as if its activations were the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import require_params, wide
from normjax.optim._paths import flatten, listing, match


def input_covariance(x: jax.Array, *, axis_name: str | Sequence[str] | None = None) -> jax.Array:
    r"""The uncentred covariance of a dense layer's inputs, :math:`X^\top X / b`.

    Args:
      x: `(..., features)`; all axes but the last are the b samples (batch and tokens alike).
      axis_name: mapped axes over which the samples are spread, or `None`. The covariance has to be that of the whole
        batch: inverses of local ones are another method. Under `jit` with sharded arrays it is global already.

    Returns:
      `(features, features)` in float32, or float64 where `x` is.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import input_covariance
      >>> input_covariance(jnp.array([[1.0, 0.0], [0.0, 2.0]])).tolist()
      [[0.5, 0.0], [0.0, 2.0]]

    References:
      Petersen, Borgelt, Ermon, TrAct: making first-layer pre-activations trainable, NeurIPS 2024,
      https://arxiv.org/abs/2410.23970
    """
    rows = wide(x).reshape(-1, x.shape[-1])
    if not rows.shape[0]:
        raise ValueError(f"x of shape {x.shape} has no samples; a covariance needs at least one.")
    covariance = jnp.matmul(rows.T, rows, precision="highest") / rows.shape[0]
    return covariance if axis_name is None else jax.lax.pmean(covariance, axis_name)


def patch_covariance(
    x: jax.Array,
    kernel_size: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    axis_name: str | Sequence[str] | None = None,
) -> jax.Array:
    r"""The uncentred covariance of the patches that a convolution sees.

    :math:`X^\top X / b` with one row of X for each of the b output positions of all images, in the order of a Flax
    kernel `(*kernel_size, in, out)` whose first axes are flattened. A patch embedding is the case of strides equal to
    the kernel's size.

    Args:
      x: `(batch, *spatial, channels)`.
      kernel_size: of the convolution, one number per spatial axis.
      strides: of the convolution.
      padding: as in `flax.linen.Conv`: `"SAME"`, `"VALID"`, or a pair per spatial axis.
      axis_name: as in `input_covariance`.

    Returns:
      `(n, n)` with n the kernel's inputs, in float32, or float64 where `x` is.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import patch_covariance
      >>> patch_covariance(jnp.ones((2, 4, 4, 3)), (2, 2), strides=2, padding="VALID").shape
      (12, 12)

    References:
      Petersen, Borgelt, Ermon, TrAct: making first-layer pre-activations trainable, NeurIPS 2024,
      https://arxiv.org/abs/2410.23970
    """
    size = tuple(kernel_size)
    if x.ndim != len(size) + 2:
        raise ValueError(
            f"x of shape {x.shape} is not (batch, *spatial, channels) for a kernel of size {size}; expected "
            f"{len(size) + 2} axes."
        )
    windows = (strides,) * len(size) if isinstance(strides, int) else tuple(strides)
    first = jnp.moveaxis(wide(x), -1, 1)
    patches = jax.lax.conv_general_dilated_patches(first, size, windows, padding, precision=jax.lax.Precision.HIGHEST)
    # They come as (batch, channels x kernel positions, ...), channels slowest; a Flax kernel has them fastest.
    split = patches.reshape(x.shape[0], x.shape[-1], -1, *patches.shape[2:])
    rows = jnp.moveaxis(split, (1, 2), (-1, -2))
    return input_covariance(rows.reshape(-1, rows.shape[-2] * rows.shape[-1]), axis_name=axis_name)


def tract_gradient(gradient: jax.Array, covariance: jax.Array, damping: float = 0.1) -> jax.Array:
    r"""The gradient of a first layer's kernel, preconditioned by its inputs.

    .. math:: \tilde\nabla_W = (X^\top X / b + \lambda I)^{-1} \, \nabla_W

    It is the change of W whose effect on the pre-activations is nearest to that of gradient descent on them.

    Args:
      gradient: of the kernel, `(*inputs, out)`: `(in, out)`, or `(*kernel_size, in, out)` of a convolution.
      covariance: `(n, n)` with n the product of all axes of the kernel but the last.
      damping: :math:`\lambda`; 0.05 suits short, 0.2 long training on inputs standardized to mean 0 and deviation 1.

    Returns:
      An array like `gradient`; solved in float32, or float64 where the covariance is.

    Raises:
      ValueError: if the covariance does not belong to the kernel, or the damping is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import tract_gradient
      >>> tract_gradient(jnp.array([[3.0], [4.0]]), jnp.diag(jnp.array([1.0, 0.5])), damping=0.5).round(3).tolist()
      [[2.0], [4.0]]

    References:
      Petersen, Borgelt, Ermon, TrAct: making first-layer pre-activations trainable, NeurIPS 2024,
      https://arxiv.org/abs/2410.23970
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}; the paper's default is 0.1.")
    inputs = gradient.size // gradient.shape[-1] if gradient.ndim else 0
    if covariance.shape != (inputs, inputs):
        raise ValueError(
            f"a kernel of shape {gradient.shape} has {inputs} inputs per output unit, so that its covariance is "
            f"({inputs}, {inputs}); got {covariance.shape}. Grouped convolutions are not supported."
        )
    matrix = wide(covariance)
    damped = matrix + damping * jnp.eye(inputs, dtype=matrix.dtype)
    flat = gradient.reshape(inputs, -1).astype(matrix.dtype)
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped, lower=True), flat)
    return solved.reshape(gradient.shape).astype(gradient.dtype)


def scale_by_tract(damping: float = 0.1) -> optax.GradientTransformationExtraArgs:
    r"""Precondition the gradients of first layers by the covariance of their inputs (TrAct).

    .. math:: \tilde\nabla_W = (X^\top X / b + \lambda I)^{-1} \, \nabla_W

    Place it first, before clipping, momentum and weight decay. `update` takes `covariances`, which names the kernels:
    a path (`"patch_embedding/kernel"`) or the end of one, and the result of `input_covariance` or `patch_covariance`
    on the batch of the gradient. With gradient accumulation, average the covariances too and apply it once.

    Where a norm follows the layer, the plain gradient is orthogonal to the kernel and the preconditioned one is not:
    projections still hold the kernel's norm, but a part of the step is along it and is undone. `project_updates` after
    this removes that part first; `track_effective_lr` measures what is left as rotation.

    Args:
      damping: :math:`\lambda`.

    Returns:
      A transformation without state.

    Raises:
      ValueError: no `covariances` in `update`, or one that fits no parameter.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import input_covariance, scale_by_tract
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> tx = optax.chain(scale_by_tract(0.5), optax.sgd(1.0))
      >>> params = {"embed": {"kernel": jnp.zeros((2, 1))}, "head": {"kernel": jnp.zeros((1, 1))}}
      >>> grads = {"embed": {"kernel": jnp.ones((2, 1))}, "head": {"kernel": jnp.ones((1, 1))}}
      >>> covariances = {"embed/kernel": input_covariance(x)}
      >>> updates, _ = tx.update(grads, tx.init(params), params, covariances=covariances)
      >>> print(updates["embed"]["kernel"].ravel(), updates["head"]["kernel"].ravel())
      [-1.  -0.4] [-1.]

    References:
      Petersen, Borgelt, Ermon, TrAct: making first-layer pre-activations trainable, NeurIPS 2024,
      https://arxiv.org/abs/2410.23970
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}; the paper's default is 0.1.")

    def init(params: Any) -> optax.EmptyState:
        require_params(params)
        return optax.EmptyState()

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        covariances: Mapping[str, jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del params, extra
        if not covariances:
            raise ValueError(
                f"covariances={covariances!r}; update needs those of this batch by path: "
                'update(..., covariances={"embed/kernel": input_covariance(x)}).'
            )
        steps = flatten(updates)
        found = match(dict(covariances), steps.leaves, "covariances")
        if len(found) > len(covariances):
            raise ValueError(f"covariances name {listing(found)}: one covariance belongs to one kernel; give its path.")
        new = {path: tract_gradient(steps.leaves[path], matrix, damping) for path, matrix in found.items()}
        return steps.replace(new), state

    return optax.GradientTransformationExtraArgs(init, update)
