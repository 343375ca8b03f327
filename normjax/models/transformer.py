"""The stack of blocks that all transformers here share: what differs is a value of its configuration."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import named_norm
from normjax.models._depth import carries, stacked
from normjax.models.attention import Attention, AttentionKind
from normjax.models.mlp import MLP
from normjax.models.relative_bias import RelativeBias
from normjax.models.residual import Residual
from normjax.placements import Placement, Step
from normjax.transform import NormTransform

Init = Callable[..., jax.Array]
_KERNEL_INIT = nnx.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a stack is made of.

    Attributes:
      layers: Number of blocks.
      features: Of the stream.
      heads: Query heads.
      hidden: Features of the feed-forward layer.
      placement: The norm and where it sits.
      kv_heads: Key and value heads; `None` for as many as queries have.
      head_features: Of a head; `None` for `features / heads`.
      kinds: Masks and positions of the layers, repeated along the depth: Gemma alternates windows and whole contexts.
      activation: Of the feed-forward layer.
      gated: Whether it is gated (SwiGLU, GeGLU).
      use_bias: Whether all projections have biases.
      qk_norm, qk_norm_over, qk_norm_after_rope, attention_scale, softcap: As in `Attention`.
      relative_buckets: Number of T5's distance buckets, shared by all layers; `None` for no bias.
      kernel_init: Initializer of every matrix, times what the placement says.
      dtype: Dtype to compute in; `None` is that of inputs and parameters together.
      param_dtype: Dtype of parameters.
      scan: Whether equal consecutive blocks are one compiled loop with stacked parameters.
      remat: Whether the backward pass computes each block again instead of keeping what is inside.
      stream_sharding: Of the stream between blocks, `nj.sharding.batch_sharding(mesh)` say; `None` leaves it to the
        compiler, which may cut the stream as it finds the parameters cut.
    """

    layers: int
    features: int
    heads: int
    hidden: int
    placement: Placement
    kv_heads: int | None = None
    head_features: int | None = None
    kinds: tuple[AttentionKind, ...] = (AttentionKind(),)
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    gated: bool = False
    use_bias: bool = False
    qk_norm: NormTransform | None = None
    qk_norm_over: Literal["head", "projection"] = "head"
    qk_norm_after_rope: bool = False
    attention_scale: float | None = None
    softcap: float | None = None
    relative_buckets: int | None = None
    kernel_init: Init = _KERNEL_INIT
    dtype: Any = None
    param_dtype: Any = jnp.float32
    scan: bool = False
    remat: bool = False
    stream_sharding: jax.sharding.Sharding | None = None

    def __post_init__(self):
        """Rejects an empty stack."""
        for name in ("layers", "features", "heads", "hidden"):
            _checks.check_count(name, getattr(self, name), 1)
        if not self.kinds:
            raise ValueError("kinds=() names no kind of attention; the default is (AttentionKind(),).")

    def block(self, depth: int) -> "BlockPlan":
        """Everything that the block at a depth from 1 depends on; equal plans make equal blocks."""
        attention, ffn = (self.placement.step(kind, depth, self.layers) for kind in ("attention", "ffn"))
        return BlockPlan(attention, ffn, self.kinds[(depth - 1) % len(self.kinds)])


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The two steps and the attention of one block."""

    attention: Step
    ffn: Step
    kind: AttentionKind


class Block(nnx.Module):
    """Attention and feed-forward, each in its residual step. A stream is one array, or a pair where two are kept."""

    def __init__(self, config: TransformerConfig, plan: BlockPlan, rngs: nnx.Rngs):
        """Makes `attention` and `ffn`."""
        place = config.placement
        common = {"use_bias": config.use_bias, "dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        inits = {name: _scaled(config, name) for name in ("query", "key", "value", "out", "gate", "up", "down")}
        inner = [place.norm if step.inner else None for step in (plan.attention, plan.ffn)]
        every = place.norm if plan.attention.qkv else None
        attention = Attention(
            config.features,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_features=config.head_features,
            kind=plan.kind,
            qk_norm=config.qk_norm or every,
            qk_norm_over=config.qk_norm_over,
            qk_norm_after_rope=config.qk_norm_after_rope,
            value_norm=every,
            inner_norm=inner[0],
            scale=config.attention_scale,
            softcap=config.softcap,
            kernel_inits=inits,
            **common,
        )
        ffn = MLP(
            config.features,
            config.hidden,
            activation=config.activation,
            gated=config.gated,
            inner_norm=inner[1],
            kernel_inits=inits,
            **common,
        )
        second = dataclasses.replace(plan.ffn, before=False, residual=False) if place.parallel else plan.ffn
        wrap = functools.partial(Residual, norm=place.norm, features=config.features, rngs=rngs)
        wrap = functools.partial(wrap, gate_init=place.gate_init, param_dtype=config.param_dtype)
        self.attention = wrap(step=plan.attention, branch=attention)
        self.ffn = wrap(step=second, branch=ffn)
        self.parallel, self.streams = place.parallel, place.streams

    def __call__(self, carry: Any, **options: Any) -> Any:
        """The block's step from one carry to the next; `options` are the attention's."""
        if self.parallel:
            u = self.attention.normalized(carry)
            both = self.attention.branch_of(u, **options) + self.ffn.branch_of(u)
            return self.attention.joined(u if self.attention.step.residual else carry, both)
        for sublayer, given in ((self.attention, options), (self.ffn, {})):
            carry = _STREAMS[self.streams](sublayer, carry, given)
        return carry


def _one(sublayer: Residual, x: Any, options: dict[str, Any]) -> Any:
    return sublayer(x, **options)


def _residual(sublayer: Residual, carry: Any, options: dict[str, Any]) -> Any:
    x, total = carry
    f = sublayer.branch_of(sublayer.normalized(x), **options)
    return sublayer.joined(x, f), total + f


def _siamese(sublayer: Residual, carry: Any, options: dict[str, Any]) -> Any:
    u, v = carry
    assert sublayer.after is not None
    a = sublayer.after(u)
    f = sublayer.branch_of(a + sublayer.normalized(v), **options)
    return a + f * jnp.asarray(sublayer.step.branch_scale, f.dtype), v + f


_STREAMS = {"one": _one, "residual": _residual, "siamese": _siamese}


def _scaled(config: TransformerConfig, matrix: str) -> Init:
    factor = config.placement.init_scale(matrix, config.layers)
    init = config.kernel_init
    return init if factor == 1 else lambda key, shape, dtype=jnp.float32: init(key, shape, dtype) * factor


class Transformer(nnx.Module):
    """A stack of blocks between the norms at its ends.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.TransformerConfig(
      ...     layers=2, features=8, heads=2, hidden=16, placement=nj.placements.peri(nj.rms_norm())
      ... )
      >>> stack = nj.models.Transformer(config, rngs=nnx.Rngs(0))
      >>> stack(jnp.ones((1, 3, 8))).shape
      (1, 3, 8)
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        """Makes the blocks and the norms at the ends.

        Args:
          config: What it is made of.
          rngs: Random streams; `params` is used.
        """
        self.config = config
        place, wide = config.placement, config.features
        norm = functools.partial(named_norm, place.norm, wide, rngs)
        self.embedding_norm = norm() if place.embedding else None
        runs = [list(run) for _, run in itertools.groupby(map(config.block, range(1, config.layers + 1)))]
        self.runs = tuple(len(run) if config.scan else 0 for run in runs)
        make = functools.partial(Block, config)
        if config.scan:
            self.blocks = nnx.List([stacked(functools.partial(make, run[0]), len(run), rngs) for run in runs])
        else:
            self.blocks = nnx.List([make(plan, rngs) for run in runs for plan in run])
        buckets, causal = config.relative_buckets, config.kinds[0].causal
        self.relative_bias = (
            None if buckets is None else RelativeBias(config.heads, count=buckets, causal=causal, rngs=rngs)
        )
        self.final_norm = norm() if place.final else None
        self.second_norm = norm() if place.streams == "siamese" else None

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        """Maps an embedded sequence to the last stream.

        Args:
          x: `(batch, tokens, features)`.
          mask: `(batch, tokens)`, any dtype; zero marks tokens that nobody sees, or `None`.
          positions: As in `Attention`.

        Returns:
          An array like `x`.
        """
        *_, last = self._carries(x, mask, positions, every=False)
        return self.ended(last)

    def carries(
        self, x: jax.Array, *, mask: jax.Array | None = None, positions: jax.Array | None = None
    ) -> Iterator[Any]:
        """The stream (or pair of streams) that enters the first block, and that after each block."""
        return self._carries(x, mask, positions, every=True)

    def _carries(self, x, mask, positions, *, every: bool) -> Iterator[Any]:
        if x.shape[-1] != self.config.features:
            raise ValueError(f"expected {self.config.features} features on the last axis, got x of shape {x.shape}.")
        options: dict[str, Any] = {"mask": mask, "positions": positions}
        if self.relative_bias is not None:
            options["bias"] = self.relative_bias(jnp.arange(x.shape[1]) if positions is None else positions)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        carry = x if self.config.placement.streams == "one" else (x, x)
        how: dict[str, Any] = {"remat": self.config.remat, "sharding": self.config.stream_sharding}
        return carries(self.blocks, self._lengths(), carry, options, every=every, **how)

    def _lengths(self) -> tuple[int, ...]:
        return self.runs if self.config.scan else (0,) * self.config.layers

    def ended(self, carry: Any) -> jax.Array:
        """The output of the stack, given its last carry."""
        streams = self.config.placement.streams
        if streams == "one":
            return carry if self.final_norm is None else self.final_norm(carry)
        first, second = carry
        assert self.final_norm is not None
        if streams == "residual":
            return first + self.final_norm(second)
        assert self.second_norm is not None
        return self.final_norm(first) + self.second_norm(second)
