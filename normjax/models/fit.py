r"""FIT, far-reaching interleaved transformers (Chen and Li 2023): local layers on groups, global ones on latents.

Tokens $X$ come in groups, each with some latents $L$. A stack is local layers on the tokens of each group, then, once
or more,

$$L \leftarrow L + \mathrm{Attn}(N(L), N(X)),\quad L \leftarrow \text{global layers}(L),\quad
X \leftarrow X + \mathrm{Attn}(N(X), N(L)),\quad X \leftarrow \text{local layers}(X)$$

where the cross attentions stay within a group and the global layers see the latents of all groups. Everything is
Pre-LN; in a cross attention both sides have a norm of their own; so have stem and outputs.

Left out: causal groups (the masks of the autoregressive form), sine positions, and stochastic depth.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._fit import CrossAttention, TransformerLayer
from normjax.nnx import Norm
from normjax.norms import layer_norm
from normjax.transform import NormTransform


class FIT(nnx.Module):
    """The FIT encoder on groups of tokens.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> def encode():
      ...     fit = nj.models.FIT(
      ...         12, features=8, latent_features=8, groups=3, tokens=4, latents=2, heads=2, latent_heads=2,
      ...         local_layers=(1, 1), latent_layers=(1,), rngs=nnx.Rngs(0)
      ...     )
      ...     return fit(jnp.ones((2, 3, 4, 12)))
      >>> x, latents = nnx.eval_shape(encode)
      >>> x.shape, latents.shape
      ((2, 3, 4, 8), (2, 3, 2, 8))

    References:
      Chen and Li 2023, [FIT: Far-reaching Interleaved Transformers](https://arxiv.org/abs/2305.12689).
    """

    def __init__(
        self,
        in_features: int,
        *,
        features: int,
        latent_features: int,
        groups: int,
        tokens: int,
        latents: int,
        heads: int,
        latent_heads: int,
        local_layers: Sequence[int] = (1, 1),
        latent_layers: Sequence[int] = (1,),
        mlp_ratio: int = 4,
        norm: NormTransform | None = None,
        rngs: nnx.Rngs,
    ):
        r"""Makes parameters.

        Args:
          in_features: Features of the patches.
          features: Width of a token.
          latent_features: Width of a latent.
          groups: Number of groups.
          tokens: Tokens of a group.
          latents: Latents of a group.
          heads: Attention heads of the local layers and of both cross attentions.
          latent_heads: Attention heads of the global layers.
          local_layers: Number of local layers before the first exchange and after each one; `(1, 1)` with one entry in
            `latent_layers` is the "(1)1(1)" of the authors' code.
          latent_layers: Number of global layers in each exchange.
          mlp_ratio: Width of the feed-forward networks over that of their stream.
          norm: Every norm; `None` is layer normalization with epsilon $10^{-6}$.
          rngs: Random streams; `params` is used.
        """
        if len(local_layers) != len(latent_layers) + 1:
            raise ValueError(
                f"got local_layers={tuple(local_layers)} and latent_layers={tuple(latent_layers)}; expected one more "
                "of the local ones: before the first exchange and after each."
            )
        for name, count in (("groups", groups), ("tokens", tokens), ("latents", latents)):
            _checks.check_count(name, count, 1)
        norm = layer_norm(epsilon=1e-6) if norm is None else norm
        self.shape = (groups, tokens, in_features)
        positions = nnx.initializers.truncated_normal(0.02)
        self.stem = nnx.Linear(in_features, features, rngs=rngs)
        self.stem_norm = Norm(norm, features, rngs=rngs)
        self.positions = nnx.Param(positions(rngs.params(), (tokens, features)))
        self.latents = nnx.Param(positions(rngs.params(), (groups * latents, latent_features)))

        def stack(width, count, heads):
            return nnx.List(TransformerLayer(width, heads, mlp_ratio, norm, rngs) for _ in range(count))

        def cross(width, other):
            inner = min(features, latent_features)
            return nnx.List(CrossAttention(width, other, heads, inner, norm, rngs) for _ in latent_layers)

        self.local_layers = nnx.List(stack(features, count, heads) for count in local_layers)
        self.latent_layers = nnx.List(stack(latent_features, count, latent_heads) for count in latent_layers)
        self.read = cross(latent_features, features)
        self.write = cross(features, latent_features)
        self.out_norm = Norm(norm, features, rngs=rngs)
        self.latent_out_norm = Norm(norm, latent_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes groups of patches.

        Args:
          x: Patches, `(batch, groups, tokens, in_features)`.

        Returns:
          Tokens `(batch, groups, tokens, features)` and latents `(batch, groups, latents, latent_features)`.
        """
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(f"expected patches (batch, {', '.join(map(str, self.shape))}), got shape {x.shape}.")
        batch, groups, tokens, _ = x.shape
        x = self.stem_norm(self.stem(x))
        # Leading axes are one batch to attention: in groups for local layers, all latents of a sample for global ones.
        x = (x + self.positions[...][None, None]).reshape(batch * groups, tokens, -1)
        width = self.latents.shape[-1]
        latents = jnp.broadcast_to(self.latents[...][None], (batch, *self.latents.shape))
        latents = latents.reshape(batch * groups, -1, width)
        x = _applied(self.local_layers[0], x)
        exchanges = zip(self.read, self.latent_layers, self.write, list(self.local_layers)[1:], strict=True)
        for read, layers, write, local in exchanges:
            latents = read(latents, x)
            latents = _applied(layers, latents.reshape(batch, -1, width)).reshape(latents.shape)
            x = _applied(local, write(x, latents))
        shape = (batch, groups, -1)
        return (
            self.out_norm(x).reshape(*shape[:2], tokens, -1),
            self.latent_out_norm(latents).reshape(*shape[:2], -1, width),
        )


def _applied(layers, x):
    for layer in layers:
        x = layer(x)
    return x
