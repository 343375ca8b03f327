"""Multi-head attention with the norms that models put into it: of queries, keys and values, and before its output."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import linear_names, named_norm
from normjax.models.rope import Rope
from normjax.precision import promote
from normjax.transform import NormTransform


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What differs between the layers of one model.

    Attributes:
      causal: Whether a token sees only itself and those before it.
      window: How many tokens back it sees, itself included; `None` for all.
      rope: Rotary embedding, or `None`.
    """

    causal: bool = True
    window: int | None = None
    rope: Rope | None = None


class Attention(nnx.Module):
    r"""Multi-head attention: $\mathrm{softmax}(s\,q k^\top + b)\,v$ of normalized and rotated heads.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> attend = nj.models.Attention(8, heads=4, kv_heads=2, qk_norm=nj.rms_norm(), rngs=nnx.Rngs(0))
      >>> attend(jnp.ones((1, 3, 8))).shape, attend.query_norm.scale.shape
      ((1, 3, 8), (2,))
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_features: int | None = None,
        kind: AttentionKind = AttentionKind(),
        qk_norm: NormTransform | None = None,
        qk_norm_over: Literal["head", "projection"] = "head",
        qk_norm_after_rope: bool = False,
        value_norm: NormTransform | None = None,
        inner_norm: NormTransform | None = None,
        use_bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        kernel_inits: dict[str, Any] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the projections `query`, `key`, `value`, `out` and the norms that are asked for.

        Args:
          features: Of the stream.
          heads: Number of query heads.
          kv_heads: Number of key and value heads, which divides `heads`; `None` for as many.
          head_features: Features of a head; `None` for `features / heads`.
          kind: Mask and positions.
          qk_norm: Norm of queries and keys (`query_norm`, `key_norm`), or `None`.
          qk_norm_over: Whether it reduces each head (Qwen 3, Gemma 3) or the whole projection (OLMo 2).
          qk_norm_after_rope: Whether it follows the rotation (HunYuan); heads only.
          value_norm: Norm of values per head (`value_norm`), or `None`.
          inner_norm: Norm before `out` (`inner_norm`, Sub-LN), or `None`.
          use_bias: Whether projections have biases.
          scale: $s$; `None` for the inverse root of a head's features.
          softcap: Scores become `softcap * tanh(scores / softcap)` (Gemma 2), or `None`.
          kernel_inits: Initializers by projection; Flax's own where there is none.
          dtype: Dtype to compute in; `None` is that of input and parameters together.
          param_dtype: Dtype of the parameters.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the heads do not divide, or a norm of the projection is to follow the rotation.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads or (head_features is None and features % heads):
            raise ValueError(
                f"kv_heads={kv_heads} must divide heads={heads}, and heads the features ({features}) unless "
                "head_features is given."
            )
        if qk_norm_after_rope and qk_norm_over == "projection":
            raise ValueError("qk_norm_over='projection' reduces all heads at once, before they are rotated.")
        size = features // heads if head_features is None else head_features
        self.heads, self.kv_heads, self.head_features = heads, kv_heads, size
        self.kind, self.scale, self.softcap = kind, size**-0.5 if scale is None else scale, softcap
        self.qk_norm_over, self.qk_norm_after_rope = qk_norm_over, qk_norm_after_rope
        inits = kernel_inits or {}

        def linear(name, inputs, outputs, *names):
            init = inits.get(name, nnx.initializers.lecun_normal())
            options = {"use_bias": use_bias, "kernel_init": init, "dtype": dtype, "param_dtype": param_dtype}
            return nnx.Linear(inputs, outputs, **options, **linear_names(*names), rngs=rngs)

        self.query = linear("query", features, heads * size, "embed", "heads")
        self.key = linear("key", features, kv_heads * size, "embed", "kv_heads")
        self.value = linear("value", features, kv_heads * size, "embed", "kv_heads")
        self.out = linear("out", heads * size, features, "heads", "embed")
        make = lambda norm, *axis: None if norm is None else named_norm(norm, axis[0], rngs, axis[1])  # noqa: E731
        head, every, each = (size, "norm"), (heads * size, "heads"), (kv_heads * size, "kv_heads")
        whole = qk_norm_over == "projection"
        self.query_norm = make(qk_norm, *(every if whole else head))
        self.key_norm = make(qk_norm, *(each if whole else head))
        self.value_norm = make(value_norm, *head)
        self.inner_norm = make(inner_norm, *every)

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          x: `(batch, tokens, features)`.
          mask: `(batch, tokens)`, any dtype; zero marks keys that nobody sees, or `None`.
          positions: `(tokens,)` or `(batch, tokens)` integers for the rotation; `None` counts from 0.
          bias: Added to the scores, broadcastable to `(batch, heads, tokens, tokens)`, or `None`.

        Returns:
          An array like `x`.
        """
        positions = jnp.arange(x.shape[1]) if positions is None else positions
        q, k = (self._prepared(x, name, positions) for name in ("query", "key"))
        v = self._heads(self.value(x))
        v = v if self.value_norm is None else self.value_norm(v)
        y = self._mixed(q, k, v, mask, bias).reshape(*x.shape[:-1], -1)
        return self.out(y if self.inner_norm is None else self.inner_norm(y))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, self.head_features)

    def _prepared(self, x: jax.Array, name: str, positions: jax.Array) -> jax.Array:
        projected, norm = getattr(self, name)(x), getattr(self, f"{name}_norm")
        rope = self.kind.rope or (lambda x, positions: x)
        if norm is None:
            return rope(self._heads(projected), positions)
        if self.qk_norm_over == "projection":
            return rope(self._heads(norm(projected)), positions)
        if self.qk_norm_after_rope:
            return norm(rope(self._heads(projected), positions))
        return rope(norm(self._heads(projected)), positions)

    def _mixed(self, q, k, v, mask, bias) -> jax.Array:
        seen = None if mask is None else mask.astype(bool)[:, None, None, :]
        causal, window = self.kind.causal, self.kind.window
        # Both ways of a window, of which a causal mask removes one.
        reach = None if window is None else (window - 1, 0 if causal else window - 1)
        # JAX's own takes the softmax in float32 whatever the queries are.
        if self.softcap is None and q.dtype != jnp.float64:
            return jax.nn.dot_product_attention(
                q, k, v, bias=bias, mask=seen, scale=self.scale, is_causal=causal, local_window_size=reach
            )
        return _capped(q, k, v, bias, _visible(q.shape[1], causal, reach, seen), self.scale, self.softcap)


def _visible(tokens: int, causal: bool, reach: tuple[int, int] | None, seen: jax.Array | None) -> jax.Array:
    back = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :]
    visible = (back >= 0) if causal else jnp.ones_like(back, bool)
    if reach is not None:
        visible &= (back <= reach[0]) & (back >= -reach[1])
    visible = visible[None, None]
    return visible if seen is None else visible & seen


def _capped(q, k, v, bias, visible, scale: float, softcap: float | None) -> jax.Array:
    """What `jax.nn.dot_product_attention` does not have: bounded scores, and float64."""
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], 2) for a in (k, v))
    scores = jnp.einsum("btnd,bsnd->bnts", q, k).astype(promote(q.dtype, jnp.float32)) * scale
    scores = scores if bias is None else scores + bias
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(scores.dtype).min), -1).astype(v.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, v)
