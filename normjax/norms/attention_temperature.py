r"""The learned temperature of cosine attention (Swin V2; Liu et al. 2021), one for each head.

$$y = c\, \tau^{\,p}\, x,\qquad \tau = \exp(\min(s_h, \log 100)),\ s_0 = \log 10$$

Behind `l2_norm` on the queries it makes the logits $\tau \cos(q, k)$. DiMR gives each of queries and keys $\tau^{1/2}$
behind an RMS norm, $c = d^{-1/4}$ undoing the $\sqrt d$ of the norm and of the attention:
`chain(rms_norm(use_scale=False), attention_temperature(head_axis=1, power=0.5, gain=d**-0.25, clamp="parameter"))`.

No state; the temperature folds into the projection.
"""

import math

import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms.temperatures import Clamp, check_clamp, learned_temperature
from normjax.precision import TORCH, Precision, scale_shift_cast
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


@method("Cosine attention's temperature", "Liu et al. 2021", "2111.09883", "token", folds="all")
def attention_temperature(
    *,
    head_axis: int,
    initial: float = 10.0,
    maximum: float = 100.0,
    clamp: Clamp = "graph",
    power: float = 1.0,
    gain: float = 1.0,
    precision: Precision = TORCH,
) -> NormTransform:
    """A learned temperature for each head; parameters `{"log_temperature"}` of shape `(heads,)`, no state.

    Args:
      head_axis: The axis of heads of the queries or keys.
      initial: Temperature at the start.
      maximum, clamp: As in `learned_temperature`.
      power: Exponent of the temperature; 0.5 where queries and keys both have it.
      gain: A constant factor.
      precision: Dtypes.

    Returns:
      The transform.

    Raises:
      ValueError: If the initial temperature is not in (0, maximum], or the clamp is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> swin = nj.qk_norm(nj.chain(nj.l2_norm(), nj.attention_temperature(head_axis=1)), nj.l2_norm())
      >>> params, state = swin.init(None, (jnp.ones((2, 4, 5, 8)),) * 2)
      >>> params["query"]["1"]["log_temperature"].shape
      (4,)

    References:
      Liu et al. 2021, [Swin Transformer V2](https://arxiv.org/abs/2111.09883).
    """
    if not 0 < initial <= maximum:
        raise ValueError(f"expected initial in (0, maximum={maximum!r}], got initial={initial!r}.")
    check_clamp(maximum, clamp)

    def init_params(rng, x, **context):
        del rng, context
        (head,) = _checks.canonical_axes((head_axis,), x.ndim, "head_axis")
        return {"log_temperature": jnp.full((x.shape[head],), math.log(initial), precision.parameters)}

    def fn(params, x, *, mask, **context):
        del context
        (head,) = _checks.canonical_axes((head_axis,), x.ndim, "head_axis")
        _checks.check_input(x)
        _checks.check_parameter("log_temperature", params["log_temperature"], x.shape, (x.shape[head],))
        values, _ = prepare(x, mask)
        stored = params["log_temperature"].astype(values.dtype)
        factor = gain * learned_temperature(stored, maximum=maximum, clamp=clamp) ** power
        factor = _checks.broadcast_to_features(factor, (head,), x.ndim)
        return scale_shift_cast(values, factor, None, x.dtype, precision)

    return stateless(fn, init_params)
