r"""PRepBN (Guo et al. 2024): a network starts with layer normalization and ends with RepBN.

$$y = \lambda\,\mathrm{LN}(x) + (1-\lambda)\,\mathrm{RepBN}(x),\qquad \lambda = r_0\, \mathtt{iter} / T$$

After `warm` steps of layer normalization alone, `iter` falls from $T$ to 0, one a step. A `blend` whose weights are a
transform with these counters as its state. Evaluation is RepBN alone at any time, one affine map that folds; what it
returns before $\lambda$ reaches 0 says nothing. Weights before it are not scale-invariant.

$T$ is in the state, as in the authors' checkpoints: a run that is resumed keeps the schedule that it began with.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._running_statistics import any_valid
from normjax.norms.layer_norm import layer_norm
from normjax.norms.rep_batch_norm import rep_batch_norm
from normjax.precision import statistics_dtype
from normjax.reductions import AxisName, prepare
from normjax.transform import NormTransform, blend


@method(
    "PRepBN: from layer normalization to RepBN",
    "Guo et al. 2024",
    "2405.11582",
    "batch",
    state=("mean", "var", "warm", "iter", "total", "(num_step)", "(count)"),
    folds="all",
)
def prep_batch_norm(
    *,
    total_steps: int = 300_000,
    warmup_steps: int = 0,
    initial_weight: float = 1.0,
    ticks_every: int = 1,
    token_norm: NormTransform | None = None,
    pass_masked: bool = False,
    feature_axes: _checks.Axes = -1,
    axis_name: AxisName = None,
    axis_index_groups=None,
    **options: Any,
) -> NormTransform:
    r"""PRepBN as a transform; parameters and state `{"0": token norm, "1": RepBN, "weights": counters}`.

    The authors' LLaMA is `prep_batch_norm(token_norm=rms_norm(), total_steps=18_000, warmup_steps=10_000,
    ticks_every=16, pass_masked=True, alpha=0.0, scale_init=jax.nn.initializers.zeros)`.

    Args:
      total_steps: $T$, in ticks. Shorter than the run, about 4/5 of it.
      warmup_steps: Ticks of the token norm alone, in which RepBN's statistics do not move.
      initial_weight: $r_0$, the weight of the token norm at the first step after them.
      ticks_every: Calls for a tick of the counters, the first call being one: the number of accumulated gradients. The
        state gains `"num_step"`. A step whose mask is empty is not a call.
      token_norm: The norm that is left behind; `None` is `layer_norm(axis=feature_axes, epsilon=1e-5)`.
      pass_masked: As in `rep_batch_norm`; the token norm then does not see the mask either, as in the authors' LLaMA.
      feature_axes, axis_name, axis_index_groups: As in `batch_norm`.
      **options: The other arguments of `rep_batch_norm`.

    Returns:
      The transform.

    Raises:
      ValueError: If `total_steps` or `ticks_every` is below 1, `warmup_steps` below 0, or $r_0$ outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.prep_batch_norm(total_steps=4)
      >>> params, state = norm.init(None, jnp.ones((2, 3)))
      >>> _, state = norm.apply(params, state, jnp.eye(2, 3), train=True)
      >>> int(state["weights"]["iter"])
      3

    References:
      Guo et al. 2024, [SLAB: Efficient Transformers with Simplified Linear Attention and Progressive
      Re-parameterized Batch Normalization](https://arxiv.org/abs/2405.11582).
    """
    _checks.check_count("total_steps", total_steps, 1)
    _checks.check_count("warmup_steps", warmup_steps)
    _checks.check_count("ticks_every", ticks_every, 1)
    _checks.check_fraction("initial_weight", initial_weight)
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    token = layer_norm(axis=feature_axes, epsilon=1e-5) if token_norm is None else token_norm
    rep = rep_batch_norm(pass_masked=pass_masked, feature_axes=feature_axes, **mapped, **options)
    mixture = blend([_unmasked(token) if pass_masked else token, rep], _schedule(initial_weight, ticks_every, mapped))

    def init(rng, x, **context):
        params, state = mixture.init(rng, x, **context)
        starts = {"warm": warmup_steps, "iter": total_steps, "total": total_steps}
        starts |= {"num_step": 0} if ticks_every > 1 else {}
        return params, {**state, "weights": {name: jnp.asarray(value, jnp.int32) for name, value in starts.items()}}

    def apply(params, state, x, *, train, mask=None, **context):
        if not train:
            y, _ = rep.apply(params["1"], state["1"], x, train=False, mask=mask, **context)
            return y, state
        y, new_state = mixture.apply(params, state, x, train=True, mask=mask, **context)
        warm = state["weights"]["warm"] > 0
        still = jax.tree.map(lambda old, new: jnp.where(warm, old, new), state["1"], new_state["1"])
        return y, {**new_state, "1": still}

    return NormTransform(init, apply)


def _schedule(initial_weight: float, ticks_every: int, mapped: dict[str, Any]) -> NormTransform:
    """The weights of both members, by counters."""

    def apply(params, state, x, *, train, mask=None, **context):
        del params, train, context
        warm, left = state["warm"], state["iter"]
        dtype = statistics_dtype(x.dtype)
        scheduled = initial_weight * left.astype(dtype) / state["total"].astype(dtype)
        weight = jnp.where(warm > 0, 1, scheduled)
        called = any_valid(mask, **mapped)
        tick = called & (state["num_step"] == 0) if ticks_every > 1 else called
        new = {
            **state,
            "warm": jnp.where(tick, jnp.maximum(warm - 1, 0), warm),
            "iter": jnp.where(tick & (warm == 0), jnp.maximum(left - 1, 0), left),
        }
        if ticks_every > 1:
            new["num_step"] = jnp.where(called, (state["num_step"] + 1) % ticks_every, state["num_step"])
        return jnp.stack([weight, 1 - weight]), new

    return NormTransform(lambda rng, x, **context: ({}, {}), apply)


def _unmasked(norm: NormTransform) -> NormTransform:
    def apply(params, state, x, *, train, mask=None, **context):
        # What lies behind the mask is normalized; NaN there must still not reach a gradient.
        return norm.apply(params, state, prepare(x, mask, x.dtype)[0], train=train, **context)

    return NormTransform(norm.init, apply)
