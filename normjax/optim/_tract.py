"""TrAct: gradients of first-layer weights, as if the layer's activations were trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import is_traced, resharded, wide
from normjax.optim._paths import flatten, listing, match


def input_covariance(x: jax.Array, *, axis_name: Any = None) -> jax.Array:
    r"""Uncentred covariance of the inputs of a dense layer, for `scale_by_tract`.

    .. math:: C = X^\top X / b

    Under `jit` with shardings the mean is over the whole batch. The inverse of a shard's own covariance is another
    algorithm: in `shard_map`, name the axis. With gradient accumulation, average covariances as gradients, and apply
    once.

    Args:
      x: inputs `(..., n)`; all axes but the last make the :math:`b` rows (batch and tokens).
      axis_name: mapped axes over which the rows are spread.

    Returns:
      `(n, n)`, float32 (float64 where `x` is).

    Raises:
      ValueError: `x` has no row axis or no rows.
      TypeError: `x` is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import input_covariance
      >>> input_covariance(jnp.array([[1.0, 2.0], [1.0, 0.0]])).tolist()
      [[1.0, 1.0], [1.0, 2.0]]

    References:
      Petersen et al., TrAct: making first-layer pre-activations trainable, 2024, https://arxiv.org/abs/2410.23970
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"inputs are floating point, got {x.dtype}; convert images first, e.g. x / 255.")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"inputs are (..., n) with at least one row, got shape {x.shape}.")
    rows = wide(x).reshape(-1, x.shape[-1])
    covariance = jnp.matmul(rows.T, rows, precision="highest") / rows.shape[0]
    return covariance if axis_name is None else jax.lax.pmean(covariance, axis_name)


def patch_covariance(
    x: jax.Array,
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    axis_name: Any = None,
) -> jax.Array:
    r"""Uncentred covariance of the patches that a convolution reads, for `scale_by_tract`.

    .. math:: C = \frac{1}{b} \sum_{n, p} \mathrm{patch}_p(x_n) \, \mathrm{patch}_p(x_n)^\top

    with :math:`b` the number of patches of the batch. Entries are ordered as a kernel of Flax is: window, then input
    channel. The patches are stored, :math:`\prod k_i / \prod s_i` times the input; those of a patch embedding
    (strides equal to the window) are the input itself.

    Args:
      x: inputs `(batch, *spatial, channels)`.
      kernel_size: :math:`k`, the window.
      strides: :math:`s`; `None`: one in each direction. A patch embedding has `strides=kernel_size`.
      padding: `"VALID"`, `"SAME"` or pairs `((low, high), ...)`, as the convolution has.
      axis_name: as in `input_covariance`.

    Returns:
      `(n, n)` with `n = prod(kernel_size) * channels`, float32 (float64 where `x` is).

    Raises:
      ValueError: kernel, strides and input do not fit; no patch at all.
      TypeError: `x` is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import patch_covariance
      >>> image = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> patch_covariance(image, (1, 2), strides=(1, 2)).tolist()
      [[2.0, 3.0], [3.0, 5.0]]

    References:
      Petersen et al., TrAct: making first-layer pre-activations trainable, 2024, https://arxiv.org/abs/2410.23970
    """
    spatial = x.ndim - 2
    strides = (1,) * spatial if strides is None else tuple(strides)
    if spatial < 1 or len(kernel_size) != spatial or len(strides) != spatial:
        raise ValueError(
            f"inputs are (batch, *spatial, channels), with one size of the window and one stride per spatial axis; got "
            f"shape {x.shape}, kernel_size={tuple(kernel_size)}, strides={strides}."
        )
    letters = "DHW"[-spatial:]
    patches = jax.lax.conv_general_dilated_patches(
        wide(x),
        tuple(kernel_size),
        strides,
        padding,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        precision=jax.lax.Precision.HIGHEST,
    )
    # XLA numbers them channel first.
    window, channels = math.prod(kernel_size), x.shape[-1]
    patches = patches.reshape(*patches.shape[:-1], channels, window).swapaxes(-1, -2)
    return input_covariance(patches.reshape(-1, window * channels), axis_name=axis_name)


def _precondition(path: str, g: jax.Array, covariance: jax.Array, penalty: Any) -> jax.Array:
    size = math.prod(g.shape[:-1])
    if jnp.shape(covariance) != (size, size):
        raise ValueError(
            f"covariance for {path!r} has shape {jnp.shape(covariance)}; a gradient of shape {g.shape} has {size} "
            f"inputs and needs {(size, size)}."
        )
    # A triangular solve has no sharded rows, and the output of a step is sharded as its gradient is.
    matrix = resharded(wide(g)).reshape(size, -1)
    damped = wide(covariance).astype(matrix.dtype) + jnp.asarray(penalty, matrix.dtype) * jnp.eye(
        size, dtype=matrix.dtype
    )
    factor = jax.scipy.linalg.cho_factor(damped, lower=True)
    return resharded(jax.scipy.linalg.cho_solve(factor, matrix).reshape(g.shape), jax.typeof(g).sharding)


def scale_by_tract(penalty: Any = 0.1) -> optax.GradientTransformationExtraArgs:
    r"""Precondition first-layer gradients with the inverse covariance of the inputs (TrAct).

    .. math:: G' = (X^\top X / b + \lambda I)^{-1} G

    for a kernel `(inputs, outputs)`: the step on the weights that comes closest to a gradient step on the layer's
    activations, :math:`z - \eta b \nabla_z L`, under a penalty on its size. Place it first, before clipping, momentum
    and Adam. Bias gradients and the gradients of other layers stay.

    It conflicts with scale invariance. The gradient of a scale-invariant first layer is orthogonal to its weights;
    after the multiplication it is not, so that a step has a radial part, norms move at first order, and the effective
    learning rate with them. For a dense layer before a batch norm and inputs of standard deviations from 2 to 0.1, a
    test measures cosines with the weights of up to 0.46 per neuron and 0.15 for the kernel, where those of the gradient
    are rounding. `project_weights` still holds the norm, but then removes part of the intended step;
    `track_effective_lr` shows how much of it turns the weights. Prefer TrAct where no norm follows the first layer.

    Args:
      penalty: :math:`\lambda`, for inputs of mean 0 and standard deviation 1: 0.1 in general, 0.05 for short, 0.2 for
        long training.

    Returns:
      A transformation without state. `update` needs the extra argument `covariance`: `{path: (n, n)}` of the kernels to
      precondition, from `input_covariance` or `patch_covariance` of the step's batch; a key may be a module. The cost
      is one Cholesky factorization of each.

    Raises:
      ValueError: a penalty that is not positive; no `covariance` in `update`; one that names no kernel or does not fit.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import input_covariance, scale_by_tract
      >>> tx = optax.chain(scale_by_tract(1.0), optax.sgd(0.1))
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}
      >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0]])
      >>> covariance = {"Dense_0": input_covariance(x)}
      >>> updates, _ = tx.update(params, tx.init(params), params, covariance=covariance)
      >>> print(updates["Dense_0"]["kernel"][:, 0])
      [-0.05 -0.1 ]

    References:
      Petersen et al., TrAct: making first-layer pre-activations trainable, 2024, https://arxiv.org/abs/2410.23970
    """
    if not is_traced(penalty) and not penalty > 0:
        raise ValueError(f"penalty damps a covariance that may be singular and must be positive, got {penalty!r}.")

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        covariance: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del params, extra
        gradients = flatten(updates)
        if not covariance:
            raise ValueError(
                "scale_by_tract needs the inputs' covariance of this batch: update(grads, state, params, "
                'covariance={"Dense_0": input_covariance(x)}).'
            )
        kernels = {path: g for path, g in gradients.leaves.items() if jnp.ndim(g) >= 2}
        named = match(covariance, kernels, "covariance")
        if not named:
            raise ValueError(f"covariance names no kernel among {listing(kernels)}.")
        scaled = {path: _precondition(path, kernels[path], c, penalty) for path, c in named.items()}
        return gradients.replace(scaled), state

    return optax.GradientTransformationExtraArgs(init, update)
