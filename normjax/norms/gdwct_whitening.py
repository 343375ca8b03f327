r"""The whitening penalty of GDWCT (Cho et al. 2019), which does what its forward pass leaves out.

$$R_w = \text{mean}\,|\Sigma_g - I|,\qquad \Sigma_g = \frac{z_g z_g^\top}{N - 1} + \epsilon I$$

$z_g$ are the centred features of a group over batch and space. The released weight is 1e-3; over several layers the
values are averaged.
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.norms._coloring import centre, distance_to_identity
from normjax.norms._groups import split_groups
from normjax.precision import TORCH, Precision
from normjax.reductions import AxisName


def group_covariance(
    x: jax.Array,
    *,
    num_groups: int,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""The covariance $z_g z_g^\top/(N - 1) + \epsilon I$ of each group of features over batch and space.

    Args:
      x: Floating array `(batch, *space, channels)`.
      num_groups: Groups of features.
      feature_axis: Channel axis.
      epsilon: Non-negative number added to the diagonals.
      mask: Broadcastable to `x` with size 1 on the features; zeros do not enter.
      axis_name: Mapped axis over which the batch is sharded.
      precision: Dtypes.

    Returns:
      Array of shape `(groups, n, n)` in the statistics dtype.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If groups, mask or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.group_covariance(jnp.array([[1.0, 1.0], [3.0, 5.0]]), num_groups=1).round(3))
      [[[2. 4.]
        [4. 8.]]]

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """
    _checks.check_epsilon(epsilon)
    _, centred, count = centre(x, feature_axis, mask, axis_name, precision)
    if mask is not None:
        valid = jnp.asarray(mask).astype(bool).reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
        if valid.shape[feature_axis] != 1:
            raise ValueError(f"the features of a covariance share a mask of size 1 there, got {mask.shape}.")
        centred = jnp.where(jnp.moveaxis(valid, feature_axis, -1), centred, 0)
    cut, _ = split_groups(centred, None, centred.ndim - 1, num_groups=num_groups)
    total = jnp.einsum("...gi,...gj->gij", cut, cut)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    identity = jnp.asarray(epsilon, total.dtype) * jnp.eye(cut.shape[-1], dtype=total.dtype)
    return total / jnp.maximum(count.reshape(-1)[0] - 1, 1) + identity[None]


def whitening_penalty(
    x: jax.Array,
    *,
    num_groups: int,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""$R_w = \text{mean}\,|\Sigma_g - I|$, the distance of the groups' covariances to the identity.

    Args:
      x: Floating array `(batch, *space, channels)`, the input of `gdwct`.
      num_groups, feature_axis, epsilon, mask, axis_name, precision: As in `group_covariance`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.whitening_penalty(jnp.array([[1.0], [3.0]]), num_groups=1).round(3))
      1.0

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """
    options = {"feature_axis": feature_axis, "epsilon": epsilon, "mask": mask, "axis_name": axis_name}
    return distance_to_identity(group_covariance(x, num_groups=num_groups, precision=precision, **options))
