r"""Residual convolutional networks in which norm, activation, weight reparametrization and residual scale are values.

A norm is asked for site by site, so that IBN-Net's choice by stage, EvoNorm's norm with its activation inside and a
network without norms are arguments and not branches of the model (`normjax.models.resnet_presets` has them).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names
from normjax.models._depth import placed
from normjax.models.resnet_block import Block, BlockPlan
from normjax.models.resnet_layers import Layers, Site
from normjax.nnx import Norm
from normjax.precision import promote
from normjax.transform import NormTransform
from normjax.weights import WeightTransform

Norms = NormTransform | Callable[[Site], NormTransform | None]
# Flax's annotation of the argument has text only.
_POOL_PADDING: Any = ((1, 1), (1, 1))
_KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stem(NamedTuple):
    """The first convolution.

    Attributes:
      kernel: Its height and width.
      stride: Its stride.
      pool: Whether a maximum over 3x3 with stride 2 follows.
    """

    kernel: int = 3
    stride: int = 1
    pool: bool = False


CIFAR_STEM = Stem()
IMAGENET_STEM = Stem(7, 2, True)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What a residual network is made of.

    Attributes:
      norms: One norm for every site but `"joined"`, or a function of the `Site` that returns a norm or `None`.
      depths: Blocks of each stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with bottlenecks ResNet-50.
      widths: Features of each stage's 3x3 convolutions; every stage but the first halves height and width.
      bottleneck: Whether a block is 1x1, 3x3, 1x1 with four times the features at its end, or 3x3, 3x3.
      preactivation: Whether norm and activation precede each convolution (He et al. 2016, ResNet-v2) or follow it.
      stem: The first convolution: `CIFAR_STEM` or `IMAGENET_STEM`, or another.
      activation: After every norm; the identity if the norm has it inside (EvoNorm).
      weights: Reparametrization of every convolution's kernel, or `None`.
      residual_scale: The branch's factor of a network without norms (NF-ResNet), or `None` for plain sums.
      use_bias: Whether convolutions have biases; a norm that follows would remove them.
      kernel_init: Initializer of every convolution.
      dtype: Dtype to compute in; `None` is that of inputs and parameters together. Logits have the parameters' dtype.
      param_dtype: Dtype of parameters.
      remat: Whether the backward pass computes each block again instead of keeping what is inside.
      stream_sharding: Of the stream between blocks, as in `TransformerConfig`.
    """

    norms: Norms
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    preactivation: bool = False
    stem: Stem = CIFAR_STEM
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    weights: WeightTransform | None = None
    residual_scale: float | None = None
    use_bias: bool = False
    kernel_init: Callable[..., jax.Array] = _KERNEL_INIT
    dtype: Any = None
    param_dtype: Any = jnp.float32
    remat: bool = False
    stream_sharding: jax.sharding.Sharding | None = None

    def __post_init__(self):
        """Rejects stages that do not match and a residual scale without preactivation."""
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(f"got depths={self.depths} and widths={self.widths}; expected one of each per stage.")
        for name in ("depths", "widths"):
            for count in getattr(self, name):
                _checks.check_count(name, count, 1)
        if self.residual_scale is not None and not self.preactivation:
            raise ValueError(
                f"residual_scale={self.residual_scale} scales the stream before each activation; it needs "
                "preactivation=True."
            )

    def norm(self, site: Site) -> NormTransform | None:
        """The norm at a site, or `None`."""
        if isinstance(self.norms, NormTransform):
            return None if site.kind == "joined" else self.norms
        return self.norms(site)

    def plans(self) -> tuple[tuple["BlockPlan", ...], ...]:
        r"""The blocks of each stage, with the analytic deviation of the stream that enters each.

        At initialization a branch of unit variance adds its squared factor: $\beta_{l+1}^2 = \beta_l^2 + \alpha^2$.
        Where the shortcut is a convolution it starts from the normalized stream, so the sum starts at 1 again.
        """
        scale, variance, features, stages = self.residual_scale, 1.0, self.widths[0], []
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            plans, outputs = [], width * (4 if self.bottleneck else 1)
            for block in range(1, depth + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                deviation = 1.0 if scale is None else math.sqrt(variance)
                plan = BlockPlan(stage, block, block == depth, features, width, outputs, stride, deviation)
                variance = (1.0 if plan.projects else variance) + (scale or 0.0) ** 2
                features = outputs
                plans.append(plan)
            stages.append(tuple(plans))
        return tuple(stages)


class ResNet(nnx.Module):
    r"""A residual network for images: stem, stages of blocks, mean over positions, linear head.

    Parameters are `stem`, `stages/S/B/{conv1, conv2, conv3, shortcut}`, their norms and `head`, which
    `normjax.hidden_weights()` recognises; below a reparametrization a kernel lies in `layer_instance`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> config = nj.models.ResNetConfig(nj.batch_norm(), depths=(1, 1), widths=(4, 8))
      >>> model = nj.models.ResNet(config, classes=3, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> model(jnp.ones((2, 8, 8, 3))).shape
      (2, 3)

    References:
      He et al. 2015, [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385); He et al. 2016,
      [Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027); Brock, De and Smith 2021,
      [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692).
    """

    def __init__(self, config: ResNetConfig, *, classes: int, channels: int = 3, rngs: nnx.Rngs):
        """Makes the layers.

        Args:
          config: What it is made of.
          classes: Number of logits.
          channels: Of the images.
          rngs: Random streams; `params` is used.
        """
        _checks.check_count("classes", classes, 1)
        _checks.check_count("channels", channels, 1)
        self.config, self.channels = config, channels
        layers = Layers(config, rngs)
        stem, plans = config.stem, config.plans()
        self.stem = layers.conv(channels, config.widths[0], stem.kernel, stem.stride, None, "embed")
        site = Site("stem", 0, 0, False, config.widths[0])
        self.stem_norm = None if config.preactivation else layers.norm(site)
        self.stages = nnx.List([nnx.List([Block(layers, plan) for plan in stage]) for stage in plans])
        last = plans[-1][-1]
        site = Site("final", last.stage, last.block, True, last.outputs)
        self.final_norm = layers.norm(site) if config.preactivation else None
        # No dtype: logits and their softmax stay in the parameters' dtype.
        names = linear_names("embed", None)
        self.head = nnx.Linear(last.outputs, classes, param_dtype=config.param_dtype, **names, rngs=rngs)

    def __call__(self, x: jax.Array, *, use_running_average: bool | None = None, **context: Any) -> jax.Array:
        """Classifies images.

        Args:
          x: `(batch, height, width, channels)`.
          use_running_average: Whether to evaluate; `None` takes what `model.train()` and `model.eval()` have set.
          **context: What norms may read, e.g. `task=` of AdaB²N.

        Returns:
          Logits, `(batch, classes)`.
        """
        *_, last = self.streams(x, use_running_average=use_running_average, **context)
        if self.config.preactivation:
            last = self._activated(self.final_norm, last, use_running_average, context)
        wide = promote(last.dtype, self.config.param_dtype)
        return self.head(jnp.mean(last.astype(wide), axis=(1, 2)))

    def streams(self, x: jax.Array, *, use_running_average: bool | None = None, **context: Any) -> Iterator[jax.Array]:
        """Yields the stream that enters the first block, and that after each block.

        Args:
          x: `(batch, height, width, channels)`.
          use_running_average: As in the call.
          **context: As in the call.

        Yields:
          `(batch, height, width, features)` each.

        Raises:
          ValueError: If `x` is no batch of images with the channels of the model.
        """
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"expected images (batch, height, width, {self.channels}), got x of shape {x.shape}.")
        x = self.stem(x)
        if not self.config.preactivation:
            x = self._activated(self.stem_norm, x, use_running_average, context)
        x = nnx.max_pool(x, (3, 3), (2, 2), _POOL_PADDING) if self.config.stem.pool else x
        sharding = self.config.stream_sharding
        yield (x := placed(x, sharding))
        step = lambda block, x, context: placed(block(x, use_running_average, **context), sharding)  # noqa: E731
        step = nnx.remat(step) if self.config.remat else step
        for stage in self.stages:
            for block in stage:
                x = step(block, x, context)
                yield x

    def _activated(self, norm: Norm | None, x: jax.Array, use_running_average, context) -> jax.Array:
        return self.config.activation(x if norm is None else norm(x, use_running_average, **context))
