r"""DiT's block with any conditional norm: adaLN-Zero, or the time-dependent norms of DiMR.

For both sublayers $F$ (attention, feed-forward), with a norm that reads the condition $c$ and the time $t$:

$$x \leftarrow x + g(c) \odot F(N(x; c, t))$$

The gate $g$ belongs to adaLN-Zero and begins at 0, so that a block begins as the identity; DiMR's blocks have none.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import named_norm
from normjax.models.attention import Attention, AttentionKind
from normjax.models.mlp import MLP
from normjax.nnx import Norm
from normjax.norms import ada_gate, ada_layer_norm, time_dependent_layer_norm, time_dependent_rms_norm
from normjax.transform import NormTransform

_XAVIER = nnx.initializers.xavier_uniform()
Gate = Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """How a DiT hears of time and label.

    Attributes:
      norm: Of the blocks; it may read `condition=` and `time=`.
      final: Of the last layer; likewise.
      gate: `gate(params of the norm, x, condition)` multiplies what a sublayer makes; `None` for no gate.
      token: Whether the condition is also a token of the sequence, for norms that read the time alone.
      time: What of the timestep the norms read as `time=`; `None` for the timestep itself.
    """

    norm: NormTransform
    final: NormTransform
    gate: Gate | None = None
    token: bool = False
    time: Callable[[jax.Array], jax.Array] | None = None


def ada_layer_norm_zero(norm: NormTransform | None = None) -> Conditioning:
    """DiT's adaLN-Zero: scale, shift and gate of every sublayer are linear in the condition and begin at zero.

    Args:
      norm: The norm inside, without scale and bias; `None` for layer normalization.

    Returns:
      The conditioning.

    Example:
      >>> import normjax as nj
      >>> nj.models.ada_layer_norm_zero().token
      False

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """
    chunks = ("shift", "scale", "gate")
    return Conditioning(ada_layer_norm(norm, chunks=chunks), ada_layer_norm(norm), ada_gate)


def time_dependent_norms(*, steps: int = 1000, layer_norm: bool = False) -> Conditioning:
    r"""DiMR's norms, whose scales are functions of $8 t / T - 4$; the label is a token beside the patches.

    Args:
      steps: $T$, the number of timesteps.
      layer_norm: Whether the blocks have TD-LN, not TD-RMS as the released models; the last layer always has TD-LN.

    Returns:
      The conditioning.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.models.time_dependent_norms().time(jnp.array([0.0, 500.0, 1000.0])))
      [-4.  0.  4.]

    References:
      Liu et al. 2024, [DiMR](https://arxiv.org/abs/2406.09416).
    """
    norm = time_dependent_layer_norm() if layer_norm else time_dependent_rms_norm()
    return Conditioning(norm, time_dependent_layer_norm(), token=True, time=lambda t: 8 * t / steps - 4)


class DiTBlock(nnx.Module):
    """A bidirectional attention and a feed-forward, each behind a conditional norm.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> block, x = nj.models.DiTBlock(8, 2, 16, rngs=nnx.Rngs(0)), jnp.ones((2, 5, 8))
      >>> bool((block(x, condition=jnp.ones((2, 8)), time=jnp.zeros(2)) == x).all())
      True

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int,
        *,
        conditioning: Conditioning | None = None,
        condition_features: int | None = None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        gated: bool = False,
        kernel_init: Callable[..., jax.Array] = _XAVIER,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes `attention`, `ffn` and their norms.

        Args:
          features: Of the stream.
          heads: Number of heads; divides the features.
          hidden: Of the feed-forward.
          conditioning: The norm and its gate; `None` for adaLN-Zero.
          condition_features: Of the condition; `None` for those of the stream.
          activation: Of the feed-forward; GELU by tanh in DiT.
          gated: Whether it is gated (DiMR: exact GELU).
          kernel_init: Initializer of every matrix but those of the norms.
          dtype: Dtype to compute in; `None` is that of input and parameters together.
          param_dtype: Dtype of the parameters.
          rngs: Random streams; `params` is used.
        """
        conditioning = ada_layer_norm_zero() if conditioning is None else conditioning
        self.gate = conditioning.gate
        inits = dict.fromkeys(("query", "key", "value", "out", "gate", "up", "down"), kernel_init)
        common: dict[str, Any] = {"use_bias": True, "kernel_inits": inits, "dtype": dtype, "param_dtype": param_dtype}
        kind = AttentionKind(causal=False)
        self.attention = Attention(features, heads=heads, kind=kind, **common, rngs=rngs)
        self.ffn = MLP(features, hidden, activation=activation, gated=gated, **common, rngs=rngs)
        context = abstract_context(features if condition_features is None else condition_features)
        make = lambda: named_norm(conditioning.norm, features, rngs, **context)  # noqa: E731
        self.attention_norm, self.ffn_norm = make(), make()

    def __call__(self, x: jax.Array, *, condition: jax.Array, time: jax.Array) -> jax.Array:
        """The block's step.

        Args:
          x: `(batch, tokens, features)`.
          condition: `(batch, condition features)`.
          time: `(batch,)`, as the norms read it.

        Returns:
          An array like `x`.
        """
        for branch, norm in ((self.attention, self.attention_norm), (self.ffn, self.ffn_norm)):
            update = branch(norm(x, condition=condition, time=time))
            x = x + (update if self.gate is None else self._gate(norm, update, condition) * update)
        return x

    def _gate(self, norm: Norm, update: jax.Array, condition: jax.Array) -> jax.Array:
        assert self.gate is not None
        params = {name: variable[...] for name, variable in nnx.to_pure_dict(nnx.state(norm, nnx.Param)).items()}
        return self.gate(params, update, condition).astype(update.dtype)


def abstract_context(condition_features: int) -> dict[str, Any]:
    """What a conditional norm is told of its condition when it is made."""
    condition = jax.ShapeDtypeStruct((1, condition_features), jnp.float32)
    return {"condition": condition, "time": jax.ShapeDtypeStruct((1,), jnp.float32)}
