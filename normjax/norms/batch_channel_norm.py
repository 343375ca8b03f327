r"""Batch-Channel Normalization (Qiao et al. 2019): batch normalization, then groups with one affine pair a group.

$$h = \mathrm{BN}(x),\qquad y_{nc} = \gamma_{g(c)}\frac{h_{nc}-\mu_{ng(c)}}{\sqrt{\sigma^2_{ng(c)}+\epsilon}}
+ \beta_{g(c)}$$

The affine pair of each channel lies between the two. With small batches the first norm is `estimated_batch_norm`.
State is the first norm's. In evaluation the first norm folds into the layer before it, the group norm stays. Weights
before it are scale-invariant unit by unit. The authors start the group scale of a residual block's last norm at zero.
"""

from typing import Any

from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.norms.batch_norm import batch_norm
from normjax.norms.group_norm import group_norm
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, chain


@method(
    "Batch-channel normalization",
    "Qiao et al. 2019",
    "1903.10520",
    "batch",
    state=("mean", "var", "(count)", "(moving_speed)"),
    context=("(moving_speed)",),
    folds="affine",
    scale_invariance="per unit",
)
def batch_channel_norm(
    *,
    num_groups: int = 32,
    batch: NormTransform | None = None,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
    **options: Any,
) -> NormTransform:
    r"""Batch-Channel Normalization as a transform: a chain of a batch norm and `group_norm(per_group=True)`.

    Args:
      num_groups: Number of groups; it must divide the channels.
      batch: The first norm; `None` is torch's batch norm with the same channel axis and epsilon.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the variances.
      scale_init: Initializer of the groups' scale; ones by default.
      bias_init: Initializer of the groups' bias; zeros by default.
      precision: Dtypes and cast order.
      **options: Arguments of `normjax.batch_norm` for the default first norm (`momentum`, `axis_name`, ...).

    Returns:
      The transform, parameters `{"0": {"scale", "bias"}, "1": {"scale", "bias"}}`, those of `"1"` of shape
      `(num_groups,)`.

    Raises:
      ValueError: If both `batch` and options for it are given, or the groups do not divide the channels.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> micro = nj.batch_channel_norm(num_groups=2, batch=nj.estimated_batch_norm(moving_speed=0.1))
      >>> params, state = micro.init(None, jnp.ones((1, 5, 5, 8)))
      >>> params["0"]["scale"].shape, params["1"]["scale"].shape, sorted(state["0"])
      ((8,), (2,), ['mean', 'moving_speed', 'var'])

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """
    if batch is not None and options:
        raise ValueError(f"batch= is given, so {sorted(options)} would be ignored; pass them to its own factory.")
    common: dict[str, Any] = {"epsilon": epsilon, "precision": precision}
    if batch is None:
        batch = batch_norm(feature_axes=feature_axis, **common, **({"momentum": 0.9, "unbiased": True} | options))
    inits = {"scale_init": scale_init, "bias_init": bias_init}
    return chain(batch, group_norm(num_groups=num_groups, feature_axis=feature_axis, per_group=True, **inits, **common))
