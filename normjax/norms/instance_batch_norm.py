r"""IBN (Pan et al. 2018): instance normalization of the first channels, batch normalization of the others.

$$y = [\,\mathrm{IN}(x_{1..h}),\ \mathrm{BN}(x_{h+1..C})\,],\qquad h = \lfloor C\,r \rfloor$$

Appearance goes, content stays. IBN-a puts it after the first convolution of the blocks of stages 1 to 3; IBN-b is an
`instance_norm` after the last residual sum of stages 1 and 2. State is batch normalization's. In evaluation the half
with batch statistics folds, the other stays. Weights before it are scale-invariant unit by unit. The authors split
into chunks of length $h$, which fails wherever the remainder is longer; here it is a cut at $h$.
"""

from typing import Any

from normjax import _checks
from normjax._method import method
from normjax.norms.batch_norm import batch_norm
from normjax.norms.instance_norm import instance_norm
from normjax.precision import TORCH, Precision
from normjax.transform import NormTransform, split


@method(
    "IBN: instance and batch normalization side by side",
    "Pan et al. 2018",
    "1807.09441",
    "batch",
    state=("mean", "var", "(count)"),
    folds="affine",
    scale_invariance="per unit",
)
def instance_batch_norm(
    *,
    ratio: float = 0.5,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    momentum: float | None = 0.9,
    unbiased: bool = True,
    precision: Precision = TORCH,
    **options: Any,
) -> NormTransform:
    r"""IBN's layer as a transform: a split of `instance_norm` and `batch_norm`.

    Args:
      ratio: $r$, the part of the channels that instance normalization gets, rounded down.
      feature_axis: The channel axis; 1 for torch's `(N, C, H, W)`.
      epsilon: Non-negative number added to the variances.
      momentum: Weight of the old running value.
      unbiased: Whether the running variance is the unbiased one, as in torch.
      precision: Dtypes and cast order.
      **options: The other arguments of `normjax.batch_norm` (`axis_name`, ...).

    Returns:
      The transform, parameters and state `{"0": instance norm's, "1": batch norm's}`.

    Raises:
      ValueError: If the ratio is outside [0, 1], or `init` finds that it leaves one of the two without a channel.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, state = nj.instance_batch_norm(ratio=0.3).init(None, jnp.ones((2, 5, 5, 7)))
      >>> params["0"]["scale"].shape, state["1"]["mean"].shape
      ((2,), (5,))

    References:
      Pan et al. 2018, [Two at Once: Enhancing Learning and Generalization Capacities via
      IBN-Net](https://arxiv.org/abs/1807.09441).
    """
    _checks.check_fraction("ratio", ratio)
    common: dict[str, Any] = {"feature_axes": feature_axis, "epsilon": epsilon, "precision": precision}
    members = (instance_norm(**common), batch_norm(momentum=momentum, unbiased=unbiased, **common, **options))

    def cut(x) -> NormTransform:
        (axis,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        first = int(x.shape[axis] * ratio)
        return split(members, axis=axis, sizes=(first, x.shape[axis] - first))

    def init(rng, x, **context):
        return cut(x).init(rng, x, **context)

    def apply(params, state, x, *, train, mask=None, **context):
        return cut(x).apply(params, state, x, train=train, mask=mask, **context)

    return NormTransform(init, apply)
