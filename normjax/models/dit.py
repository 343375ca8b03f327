"""A diffusion transformer: patches of a noisy image, blocks conditioned on time and label, the predicted noise."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named, named_norm
from normjax.models._depth import carries, equal_blocks, placed
from normjax.models.dit_block import Conditioning, DiTBlock, abstract_context, ada_layer_norm_zero
from normjax.models.patches import patchify, unpatchify
from normjax.norms import sinusoidal_embedding

_ZEROS, _SMALL = nnx.initializers.zeros_init(), nnx.initializers.normal(0.02)
_XAVIER = nnx.initializers.xavier_uniform()


class DiT(nnx.Module):
    r"""Predicts the noise of an image, or noise and variance, from image, timestep and label.

    Patches get a fixed sine-cosine position; the embeddings of time and label are added to one condition $c$. Label
    `classes` is the one of no label, for guidance without a classifier.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> options = {"shape": (4, 4, 3), "patch": 2, "layers": 1, "features": 8, "heads": 2, "classes": 10}
      >>> dit = nj.models.DiT(**options, rngs=nnx.Rngs(0))
      >>> x, time, label = jnp.ones((2, 4, 4, 3)), jnp.array([3.0, 900.0]), jnp.array([1, 10])
      >>> dit(x, time, label).shape
      (2, 4, 4, 3)
      >>> make = lambda: nj.models.DiT(**options, conditioning=nj.models.time_dependent_norms(), rngs=nnx.Rngs(0))
      >>> nnx.eval_shape(make).blocks[0].ffn_norm.scale["u"].shape
      (8,)

    References:
      Peebles and Xie 2022, [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748).
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        patch: int,
        layers: int,
        features: int,
        heads: int,
        classes: int,
        hidden: int | None = None,
        out_channels: int | None = None,
        conditioning: Conditioning | None = None,
        time_features: int = 256,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scan: bool = False,
        remat: bool = False,
        stream_sharding: jax.sharding.Sharding | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the embedders, `blocks`, `final_norm` and `out`.

        Args:
          shape: Height, width and channels of an image.
          patch: Side of a patch; divides height and width.
          layers: Number of blocks.
          features: Of the stream and of the condition; divisible by 4.
          heads: Of attention.
          classes: Number of labels, without the one of no label.
          hidden: Of the feed-forward; `None` is four times the features.
          out_channels: Of the prediction; `None` for the image's, twice as many to learn the variance too.
          conditioning: How blocks hear of time and label; `None` for adaLN-Zero.
          time_features: Of the sinusoidal embedding of the timestep.
          dtype: Dtype to compute in; `None` is that of input and parameters together.
          param_dtype: Dtype of the matrices; those of the norms are float32.
          scan: Whether the blocks are one compiled loop with stacked parameters, `blocks[0]`.
          remat: Whether the backward pass computes each block again instead of keeping what is inside.
          stream_sharding: As in `TransformerConfig`.
          rngs: Random streams; `params` is used.

        Raises:
          ValueError: If the patches do not fill the image, or the features do not split into four.
        """
        _checks.check_count("layers", layers, 1)
        height, width, channels = shape
        if features % 4 or height % patch or width % patch:
            raise ValueError(
                f"expected features divisible by 4 and sides divisible by patch={patch}, got features={features} and "
                f"shape={shape}."
            )
        conditioning = ada_layer_norm_zero() if conditioning is None else conditioning
        self.shape, self.patch, self.time_features = shape, patch, time_features
        self.token, self.time_of = conditioning.token, conditioning.time
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.scan, self.remat, self.stream_sharding, self.layers = scan, remat, stream_sharding, layers

        def linear(inputs, outputs, init, *names):
            return nnx.Linear(inputs, outputs, kernel_init=init, **linear_names(*names), **dtypes, rngs=rngs)

        self.embedding = linear(patch * patch * channels, features, _XAVIER, None, "embed")
        self.time_hidden = linear(time_features, features, _SMALL, None, "mlp")
        self.time_out = linear(features, features, _SMALL, "mlp", "embed")
        labels: dict[str, Any] = {"embedding_init": _SMALL, "embedding_metadata": named(None, "embed"), **dtypes}
        self.label_embedding = nnx.Embed(classes + 1, features, **labels, rngs=rngs)
        sizes = (features, heads, 4 * features if hidden is None else hidden)
        make = lambda rngs: DiTBlock(*sizes, conditioning=conditioning, **dtypes, rngs=rngs)  # noqa: E731
        self.blocks = equal_blocks(make, layers, rngs, scan)
        self.final_norm = named_norm(conditioning.final, features, rngs, **abstract_context(features))
        outputs = patch * patch * (channels if out_channels is None else out_channels)
        self.out = linear(features, outputs, _ZEROS, "embed", None)

    def __call__(self, x: jax.Array, time: jax.Array, label: jax.Array) -> jax.Array:
        """Predicts.

        Args:
          x: Noisy images, `(batch, height, width, channels)`.
          time: Timesteps, floating, `(batch,)`.
          label: Integers, `(batch,)`; `classes` for none.

        Returns:
          `(batch, height, width, out channels)`.

        Raises:
          TypeError: If the labels are no integers.
          ValueError: If the images have another shape, or time and label are not one for each.
        """
        self._check(x, time, label)
        height, width, _ = self.shape
        condition = self._embedded_time(time) + self.label_embedding(label)
        condition = placed(condition, self.stream_sharding)
        tokens = self.embedding(patchify(x, self.patch))
        tokens = tokens + self._positions().astype(tokens.dtype)[None]
        if self.token:
            tokens = jnp.concatenate([condition[:, None].astype(tokens.dtype), tokens], axis=1)
        context: dict[str, Any] = {"condition": condition, "time": time if self.time_of is None else self.time_of(time)}
        lengths = (self.layers,) if self.scan else (0,) * self.layers
        how: dict[str, Any] = {"remat": self.remat, "sharding": self.stream_sharding}
        *_, tokens = carries(self.blocks, lengths, tokens, context, **how)
        patches = self.final_norm(tokens[:, 1:] if self.token else tokens, **context)
        return unpatchify(self.out(patches), height, width, self.patch)

    def _check(self, x: jax.Array, time: jax.Array, label: jax.Array) -> None:
        if x.shape[1:] != self.shape or time.shape != x.shape[:1] or label.shape != x.shape[:1]:
            raise ValueError(
                f"expected images (batch, {', '.join(map(str, self.shape))}) with one time and one label each, got "
                f"{tuple(x.shape)}, {tuple(time.shape)} and {tuple(label.shape)}."
            )
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise TypeError(f"expected integer labels, got {label.dtype}.")

    def _embedded_time(self, time: jax.Array) -> jax.Array:
        return self.time_out(jax.nn.silu(self.time_hidden(sinusoidal_embedding(time, self.time_features))))

    def _positions(self) -> jax.Array:
        """`(patches, features)`: column and row of each patch, half of the features each, sines first."""
        height, width, _ = self.shape
        features = self.embedding.out_features // 2
        rows, columns = jnp.divmod(jnp.arange(height * width // self.patch**2), width // self.patch)
        parts = (sinusoidal_embedding(a.astype(jnp.float32), features, flip_sin_to_cos=False) for a in (columns, rows))
        return jnp.concatenate(tuple(parts), -1)
