"""The vision transformer: patches of an image through any stack of blocks."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import conv_names, linear_names, named
from normjax.models.transformer import Transformer, TransformerConfig
from normjax.precision import promote

Pool = Literal["class", "mean"]
_POSITION_INIT = nnx.initializers.normal(0.02)


class ViT(nnx.Module):
    r"""Logits of an image: $W_h\, p(T([c; E x] + P))$ with patches $E x$ and learned positions $P$.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.presets.vit(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.ViT(config, image_size=8, patch_size=4, classes=3, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 8, 8, 3))).shape, model.position_embedding.shape
      ((2, 3), (5, 8))

    References:
      Dosovitskiy et al. 2020, [An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        image_size: int,
        patch_size: int,
        classes: int,
        channels: int = 3,
        pool: Pool = "class",
        rngs: nnx.Rngs,
    ):
        """Makes `patch_embedding`, `class_token` where it is asked for, `position_embedding`, `stack` and `head`.

        Args:
          config: The stack; its attention sees every token, as that of `presets.vit` does.
          image_size: Height and width of an image.
          patch_size: Height and width of a patch, which divides `image_size`.
          classes: Number of logits.
          channels: Of the images.
          pool: What the head reads: the class token's output, or the mean over the patches'.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the sizes do not divide, the attention is causal or `pool` is unknown.
        """
        for name, count in (("patch_size", patch_size), ("classes", classes), ("channels", channels)):
            _checks.check_count(name, count, 1)
        _checks.check_choice("pool", pool, Pool)
        if image_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}.")
        if any(kind.causal for kind in config.kinds):
            raise ValueError("patches have no order: expected kinds=(AttentionKind(causal=False),), as in presets.vit.")
        self.shape, self.pool = (image_size, image_size, channels), pool
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        patch = (patch_size, patch_size)
        options = {"strides": patch, "padding": "VALID", **conv_names(None, "embed"), **dtypes}
        self.patch_embedding = nnx.Conv(channels, config.features, patch, **options, rngs=rngs)
        count = (image_size // patch_size) ** 2 + (pool == "class")
        token = jnp.zeros((config.features,), config.param_dtype)
        self.class_token = nnx.Param(token, **named("embed")) if pool == "class" else None
        positions = _POSITION_INIT(rngs.params(), (count, config.features), config.param_dtype)
        self.position_embedding = nnx.Param(positions, **named("positions", "embed"))
        self.stack = Transformer(config, rngs=rngs)
        # No dtype: logits and their softmax stay in the parameters' dtype.
        names = linear_names("embed", None)
        self.head = nnx.Linear(config.features, classes, param_dtype=config.param_dtype, **names, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Classifies images.

        Args:
          x: `(batch, image_size, image_size, channels)`.

        Returns:
          Logits, `(batch, classes)`.
        """
        y = self.stack(self.embedded(x))
        y = y.astype(promote(y.dtype, self.head.param_dtype))
        return self.head(y[:, 0] if self.pool == "class" else jnp.mean(y, axis=1))

    def embedded(self, x: jax.Array) -> jax.Array:
        """The tokens that enter the stack, `(batch, tokens, features)`; the class token is the first.

        Raises:
          ValueError: If the images have another shape than the model's.
        """
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(f"expected images (batch, {', '.join(map(str, self.shape))}), got x of shape {x.shape}.")
        patches = self.patch_embedding(x)
        tokens = patches.reshape(x.shape[0], -1, patches.shape[-1])
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (x.shape[0], 1, tokens.shape[-1]))
            tokens = jnp.concatenate([first, tokens], axis=1)
        return tokens + self.position_embedding[...].astype(tokens.dtype)[None]
