r"""Continual normalization (Pham, Liu and Hoi 2022): group normalization without affine, then batch normalization.

$$y = \mathrm{BN}(\mathrm{GN}(x))$$

The groups take out what differs from task to task before the batch's statistics are taken. State is batch
normalization's. In evaluation the group norm stays, only what follows it is affine. Weights before it are
scale-invariant group by group. The authors' experiments leave scale and bias out of the optimizer.
"""

from typing import Any

from normjax._method import method
from normjax.norms.batch_norm import batch_norm
from normjax.norms.group_norm import group_norm
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, chain


@method(
    "Continual normalization",
    "Pham, Liu and Hoi 2022",
    "2203.16102",
    "batch",
    state=("mean", "var", "(count)"),
    folds="affine",
    scale_invariance="per group",
)
def continual_norm(
    *,
    num_groups: int = 32,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    momentum: float | None = 0.9,
    unbiased: bool = True,
    precision: Precision = TORCH,
    **options: Any,
) -> NormTransform:
    r"""Continual normalization as a transform: a chain of `group_norm` (no parameters) and `batch_norm`.

    Args:
      num_groups: Number of groups; it must divide the channels.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the variance of both.
      momentum: Weight of the old running value.
      unbiased: Whether the running variance is the unbiased one, as in torch.
      precision: Dtypes and cast order.
      **options: The other arguments of `normjax.batch_norm` (`axis_name`, `use_scale`, ...).

    Returns:
      The transform, parameters `{"0": {}, "1": {"scale", "bias"}}` and state `{"0": {}, "1": {"mean", "var"}}`.

    Raises:
      ValueError: If epsilon or momentum is out of range, or the groups do not divide the channels.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.continual_norm(num_groups=2).init(None, jnp.ones((2, 5, 5, 8)))
      >>> sorted(params["1"]), sorted(state["1"])
      (['bias', 'scale'], ['mean', 'var'])

    References:
      Pham, Liu and Hoi 2022, [Continual Normalization](https://arxiv.org/abs/2203.16102).
    """
    common: dict[str, Any] = {"epsilon": epsilon, "precision": precision}
    group = group_norm(num_groups=num_groups, feature_axis=feature_axis, use_scale=False, use_bias=False, **common)
    batch = batch_norm(feature_axes=feature_axis, momentum=momentum, unbiased=unbiased, **common, **options)
    return chain(group, batch)
