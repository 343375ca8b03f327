"""The public call: `qk_norm`. Each head is a row of the row norms."""

from typing import Literal

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels._dispatch import Implementation
from pallas_kernels.row_norm.api import GPU_DEFAULT
from pallas_kernels.row_norm.vjp import row_norm

KINDS = ("rms", "layer")


def qk_norm(
    q: jax.Array,
    k: jax.Array,
    q_scale: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    *,
    kind: Literal["rms", "layer"] = "rms",
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Norms of queries and keys before attention, each head by itself, as XLA or as one kernel each.

    $$\hat q = \operatorname{norm}(q)\,(w_q + o), \qquad \hat k = \operatorname{norm}(k)\,(w_k + o)$$

    A TPU keeps what a matrix product makes as (tokens, heads · features) in tiles; rows of one head each would be
    another array, copied before the kernel and after. The TPU kernel therefore reads whole tokens and takes the
    statistics of each head where it lies, if at most eight heads fill registers of 128 lanes without rest, as those of
    32, 64, 80, 96, 128, 192 or 256 features do; other heads are rows of the plain kernel. On a GPU a head is a row
    without any copy.

    Args:
      q: Real floating array (..., heads, features), as it comes from its matrix product.
      k: The same with as many or fewer heads.
      q_scale: $w_q$, (features,), one for all heads; `None` multiplies nothing.
      k_scale: $w_k$, as `q_scale`.
      kind: "rms", or "layer", which subtracts the mean of each head too.
      epsilon, scale_offset, implementation, mesh, interpret: As in `layer_norm`.
      spec: How both `q` and `k` are split over `mesh`; heads are split as rows are.

    Returns:
      `(q, k)`, normalized.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, and if `q` and `k` do not fit.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> q, k = jnp.array([[[3.0, -3.0], [1.0, 1.0]]]), jnp.array([[[5.0, 5.0]]])
      >>> q, k = pallas_kernels.qk_norm(q, k, epsilon=0.0)
      >>> print(q[0], k[0])
      [[ 1. -1.]
       [ 1.  1.]] [[1. 1.]]

    References:
      Henry et al. 2020, [Query-Key Normalization](https://arxiv.org/abs/2010.04245);
      Dehghani et al. 2023, [Scaling Vision Transformers to 22 Billion Parameters](https://arxiv.org/abs/2302.05442).
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; expected one of {KINDS}.")
    if q.ndim < 2 or k.ndim < 2 or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"expected q and k of shape (..., heads, features), of as many, got {q.shape} and {k.shape}.")

    def norm(x: jax.Array, scale: jax.Array | None) -> jax.Array:
        (y,) = row_norm(
            kind,
            (x,),
            scale,
            None,
            axis=-1,
            epsilon=epsilon,
            scale_offset=scale_offset,
            heads=True,
            implementation=implementation,
            gpu_default=GPU_DEFAULT,
            mesh=mesh,
            spec=spec,
            interpret=interpret,
        )
        return y

    return norm(q, q_scale), norm(k, k_scale)
