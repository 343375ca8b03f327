r"""RepBN (Guo et al. 2024): batch normalization beside a learned multiple of its input.

$$y = \mathrm{BN}(x) + \alpha x$$

$\alpha$ is one number a layer. State is batch normalization's. Evaluation is one affine map,
$a = \gamma/\sqrt{\bar\sigma^2+\epsilon} + \alpha$ and $b = \beta - \gamma\bar\mu/\sqrt{\bar\sigma^2+\epsilon}$, which
folds; into a preceding layer with bias $e$ as $a e + b$ (the authors' patch embedding drops $\alpha e$). The weights
before it are not scale-invariant.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from normjax._method import method
from normjax.norms.batch_norm import batch_norm
from normjax.precision import TORCH, Precision, output_dtype, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform


@method(
    "RepBN: batch normalization and a scaled skip",
    "Guo et al. 2024",
    "2405.11582",
    "batch",
    state=("mean", "var", "(count)"),
    folds="all",
)
def rep_batch_norm(
    *,
    alpha: float = 1.0,
    pass_masked: bool = False,
    momentum: float | None = 0.9,
    unbiased: bool = True,
    precision: Precision = TORCH,
    **options: Any,
) -> NormTransform:
    r"""RepBN, $y = \mathrm{BN}(x) + \alpha x$, as a transform; parameters those of batch norm and `"alpha"`.

    Args:
      alpha: Initial value of the scalar parameter `"alpha"`: 1 in the authors' vision models; 0 in their LLaMA, whose
        batch norm has `scale_init=jax.nn.initializers.zeros` too, so that the layer starts by returning 0.
      pass_masked: Whether masked positions skip the batch norm in training, $y = x + \alpha x$, as in the authors'
        LLaMA; otherwise they are normalized with statistics that they did not enter.
      momentum: Weight of the old running value; `None` averages all batches equally.
      unbiased: Whether the running variance is the unbiased one, as in torch.
      precision: Dtypes and cast order.
      **options: The other arguments of `normjax.batch_norm` (`feature_axes`, `epsilon`, `axis_name`, ...).

    Returns:
      The transform; its state is `batch_norm`'s.

    Raises:
      ValueError: If `batch_norm` refuses an argument.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.rep_batch_norm()
      >>> x = jnp.array([[1.0], [3.0]])
      >>> params, state = norm.init(None, x)
      >>> y, state = norm.apply(params, state, x, train=True)
      >>> print(y.T.round(3))
      [[0. 4.]]

    References:
      Guo et al. 2024, [SLAB: Efficient Transformers with Simplified Linear Attention and Progressive
      Re-parameterized Batch Normalization](https://arxiv.org/abs/2405.11582).
    """
    # The sum is taken in the statistics dtype and rounded once.
    inner = dataclasses.replace(precision, output="input")
    batch = batch_norm(momentum=momentum, unbiased=unbiased, precision=inner, **options)

    def init(rng, x, **context):
        params, state = batch.init(rng, x, **context)
        return {**params, "alpha": jnp.full((), alpha, precision.parameters)}, state

    def apply(params, state, x, *, train, mask=None, **context):
        values, valid = prepare(x, mask, statistics_dtype(x.dtype, precision))
        y, state = batch.apply(params, state, values, train=train, mask=valid, **context)
        if pass_masked and train and valid is not None:
            y = jnp.where(valid, y, values)
        y = y + params["alpha"].astype(values.dtype) * values
        return y.astype(output_dtype(x.dtype, tuple(params.values()), precision)), state

    return NormTransform(init, apply)
