r"""QK-norm (Henry et al. 2020): attention logits of normalized queries and keys, in the orders that real models have.

$$\tilde q = R_i\, N_q(q_i),\quad \tilde k = R_j\, N_k(k_j) \qquad\text{or}\qquad
\tilde q = N_q(R_i\, q_i),\quad \tilde k = N_k(R_j\, k_j)$$

with $R$ the rotary embedding. The two differ as soon as a scale is not the same within each rotated pair. The norms are
values, for projections of shape `(..., heads, head_dim)`:

* per head, one scale for all: `rms_norm()`, before the rotation in Qwen3, Gemma 3 (`scale_offset=1`), Exaone 4 and
  GLM-4.5; after it in HunYuan, NanoChat and Llama 4 (both `use_scale=False`; Llama 4 only in layers that rotate);
* full projected width: `rms_norm(axis=(-2, -1))` in OLMo 2 and MiniMax-M2; sharded heads need `axis_name=`, or `jit`;
* per head with a scale for each: `layer_norm(feature_axes=(-2, -1), use_bias=False)` in Cohere, with a bias in
  Chameleon;
* values: `rms_norm(use_scale=False)` in Gemma 4, `rms_norm()` in HybridNorm;
* cosine attention: `chain(l2_norm(), attention_temperature(head_axis=-2))` for queries, `l2_norm()` for keys.

A constant query temperature, such as Muse Spark's 5.473, belongs into the scale of the logits. No state of its own.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from normjax import _checks
from normjax._method import method
from normjax.transform import NormTransform

Function = Callable[[jax.Array], jax.Array]
RotationOrder = Literal["normalize_then_rotate", "rotate_then_normalize"]


def qk_normalize(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array | None = None,
    *,
    query: Function,
    key: Function,
    value: Function | None = None,
    rotate: Function | tuple[Function, Function] | None = None,
    order: RotationOrder = "normalize_then_rotate",
) -> tuple[jax.Array, ...]:
    """Normalizes queries and keys (and values), before or after they are rotated.

    Args:
      q: Queries, any shape that `query` takes.
      k: Keys, any shape that `key` takes; grouped-query attention has fewer heads here.
      v: Values, or `None`.
      query: Normalizes queries: a bound norm, such as an `nnx.Norm`. nGPT gives the same function for the keys.
      key: Normalizes keys.
      value: Normalizes values; `None` leaves them as they are.
      rotate: The rotary embedding, or a pair of them where queries and keys are at different positions, or `None`.
      order: Which comes first.

    Returns:
      `(q, k)`, or `(q, k, v)` if values were given.

    Raises:
      ValueError: If the order is unknown, or there is a norm of values without values.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> q, k = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]])
      >>> swap = lambda x: x[..., ::-1]
      >>> q, k = nj.qk_normalize(q, k, query=nj.l2_normalize, key=nj.l2_normalize, rotate=swap)
      >>> print(q, k)
      [[0.8 0.6]] [[1. 0.]]

    References:
      Henry et al. 2020, [Query-Key Normalization for Transformers](https://arxiv.org/abs/2010.04245).
    """
    _checks.check_choice("order", order, RotationOrder)
    if value is not None and v is None:
        raise ValueError("qk_normalize got a norm of values, value=, but no values v.")
    rotations = rotate if isinstance(rotate, tuple) else (rotate, rotate)
    normalized = [
        _composed((norm, turn) if order == "normalize_then_rotate" else (turn, norm))(array)
        for array, norm, turn in zip((q, k), (query, key), rotations, strict=True)
    ]
    return tuple(normalized) if v is None else (*normalized, _composed((value,))(v))


@method(
    "Query-key normalization",
    "Henry et al. 2020",
    "2010.04245",
    "token",
    context=("(rotate)",),
    scale_invariance="per group",
)
def qk_norm(
    query: NormTransform,
    key: NormTransform | None = None,
    value: NormTransform | None = None,
    *,
    order: RotationOrder = "normalize_then_rotate",
) -> NormTransform:
    """QK-norm as a transform of tuples: `(q, k)` or `(q, k, v)` in, the same out; context `rotate=`.

    Args:
      query: The norm of queries.
      key: The norm of keys; `None` is the same as for queries, with parameters of its own.
      value: The norm of values, or `None`.
      order: Whether the rotation comes after or before.

    Returns:
      The transform. Parameters and state are dicts keyed `"query"`, `"key"` and, with a norm of values, `"value"`; a
      mask is one array for all, or a tuple of one each. It stands alone: `chain` composes transforms of one array.

    Raises:
      ValueError: If the order is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> qwen3, olmo2 = nj.qk_norm(nj.rms_norm()), nj.qk_norm(nj.rms_norm(axis=(-2, -1)))
      >>> qk = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 5, 1, 8))
      >>> params, state = olmo2.init(None, qk)
      >>> params["query"]["scale"].shape, params["key"]["scale"].shape
      ((4, 8), (1, 8))
      >>> params, state = qwen3.init(None, qk)
      >>> (q, k), state = qwen3.apply(params, state, qk, train=True, rotate=lambda x: -x)

    References:
      Henry et al. 2020, [Query-Key Normalization for Transformers](https://arxiv.org/abs/2010.04245).
    """
    _checks.check_choice("order", order, RotationOrder)
    members = {"query": query, "key": query if key is None else key} | ({} if value is None else {"value": value})

    def init(rng, x, **context):
        _check_inputs(x, value)
        rngs = [None] * len(members) if rng is None else jax.random.split(rng, len(members))
        params, state = {}, {}
        for (name, member), own, struct in zip(members.items(), rngs, x, strict=False):
            params[name], state[name] = member.init(own, struct, **context)
        return params, state

    def apply(params, state, x, *, train, mask=None, rotate=None, **context) -> Any:
        _check_inputs(x, value)
        masks = dict(zip(("query", "key", "value"), mask if isinstance(mask, tuple) else (mask,) * 3, strict=False))
        new_state: dict[str, Any] = {}

        def bound(name):
            def normalize(array):
                y, new_state[name] = members[name].apply(
                    params[name], state[name], array, train=train, mask=masks[name], **context
                )
                return y

            return normalize if name in members else None

        functions = {name: bound(name) for name in ("query", "key", "value")}
        return qk_normalize(*x, **functions, rotate=rotate, order=order), new_state

    return NormTransform(init, apply)


def _composed(functions: tuple[Function | None, ...]) -> Function:
    def composed(array):
        for f in functions:
            array = array if f is None else f(array)
        return array

    return composed


def _check_inputs(x: Any, value: NormTransform | None) -> None:
    count = len(x) if isinstance(x, tuple | list) else None
    if count != 3 and (count != 2 or value is not None):
        expected = "(q, k, v)" if value is not None else "(q, k) or (q, k, v)"
        got = f"a {type(x).__name__}" if count is None else f"{count} arrays"
        raise ValueError(f"qk_norm normalizes a tuple {expected}, got {got}.")
