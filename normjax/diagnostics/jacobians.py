"""Jacobians on a probe set: of the output in the input, and in the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normjax.diagnostics.ranks import _check_fraction
from normjax.optim._leaves import wide
from normjax.precision import promote


def jacobian_norm(fn: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> jax.Array:
    r"""Root mean square, over inputs, of the Frobenius norm of the input-output Jacobian.

    .. math:: \sqrt{\mathbb{E}_x \lVert \partial f(x) / \partial x \rVert_F^2}

    One input at a time, so that a function whose inputs see each other (batch statistics) has to be in evaluation.

    Args:
      fn: `fn(x)`, from a batch of inputs to one of outputs, both with the inputs on the first axis.
      inputs: `(n, ...)`, floating.

    Returns:
      A scalar of the inputs' dtype, at least float32.

    Raises:
      TypeError: If the inputs are not floating point.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.jacobian_norm(lambda x: x @ jnp.array([[3.0], [4.0]]), jnp.ones((5, 2)))
      Array(5., dtype=float32)

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, figure 2,
      https://arxiv.org/abs/2407.01800
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"a Jacobian needs floating inputs, got {inputs.dtype}; differentiate from the embedding on.")

    def squared(x: jax.Array) -> jax.Array:
        jacobian = jax.jacrev(lambda one: fn(one[None])[0])(x)
        return jnp.sum(jnp.square(wide(jacobian)))

    return jnp.sqrt(jnp.mean(jax.lax.map(squared, inputs)))


def neural_tangent_kernel(fn: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: jax.Array) -> jax.Array:
    r"""Empirical neural tangent kernel of a probe set, traced over outputs.

    .. math:: K_{ij} = \sum_k \Bigl\langle \frac{\partial f_k(x_i)}{\partial \theta},
        \frac{\partial f_k(x_j)}{\partial \theta} \Bigr\rangle

    It holds one Jacobian, `n * outputs * parameters` numbers: meant for some dozen inputs.

    Args:
      fn: `fn(params, x)`, from a batch of inputs to one of outputs, both with the inputs on the first axis.
      params: Floating-point parameters.
      inputs: `(n, ...)`.

    Returns:
      `(n, n)`, symmetric and positive semidefinite, at least float32.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> nj.diagnostics.neural_tangent_kernel(lambda w, x: x @ w, jnp.ones((2, 1)), x)
      Array([[1., 1.],
             [1., 2.]], dtype=float32)

    References:
      Jacot et al., Neural tangent kernel, 2018, https://arxiv.org/abs/1806.07572
    """
    jacobians = jax.lax.map(lambda x: jax.jacrev(lambda p: fn(p, x[None])[0].reshape(-1))(params), inputs)
    kernel = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(jacobians):
        rows = wide(leaf.reshape(leaf.shape[0], -1))
        product = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
        kernel = kernel.astype(promote(kernel.dtype, product.dtype)) + product
    return kernel


def ntk_rank(
    fn: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: jax.Array, tolerance: float = 0.01
) -> jax.Array:
    r"""Numerical rank of the neural tangent kernel: in how many independent ways a step can move the outputs.

    .. math:: |\{ i : \lambda_i > t \, \lambda_1 \}|

    Args:
      fn: As in `neural_tangent_kernel`.
      params: As in `neural_tangent_kernel`.
      inputs: As in `neural_tangent_kernel`.
      tolerance: :math:`t`.

    Returns:
      An int32 scalar, at most the number of inputs; 0 where no parameter moves any output.

    Raises:
      ValueError: If the tolerance is outside (0, 1).

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.diagnostics.ntk_rank(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]))
      Array(2, dtype=int32)

    References:
      Lyle et al., Disentangling the causes of plasticity loss in neural networks, 2024,
      https://arxiv.org/abs/2402.18762
    """
    _check_fraction("tolerance", tolerance)
    values = jnp.linalg.eigvalsh(neural_tangent_kernel(fn, params, inputs))
    return jnp.sum(values > tolerance * values[-1], dtype=jnp.int32)
