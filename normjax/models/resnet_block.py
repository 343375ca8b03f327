"""The residual block: two or three convolutions, activated before or after."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models.resnet_layers import Layers, Site, SiteKind


class BlockPlan(NamedTuple):
    """Where a block stands and how wide it is.

    Attributes:
      stage: From 1.
      block: Within the stage, from 1.
      ends_stage: Whether it is the stage's last.
      features: Of the stream that enters.
      width: Of the 3x3 convolutions.
      outputs: Of the stream that leaves.
      stride: Of the first 3x3 convolution, and of the shortcut.
      deviation: Analytic standard deviation of the stream that enters, at initialization.
    """

    stage: int
    block: int
    ends_stage: bool
    features: int
    width: int
    outputs: int
    stride: int
    deviation: float

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.stride != 1 or self.features != self.outputs


class Block(nnx.Module):
    r"""$x + \alpha F(x / \beta)$, activated inside of $F$ (preactivation) or after the sum."""

    # Made by number in `__init__`.
    conv1: Any
    norm1: Any

    def __init__(self, layers: Layers, plan: BlockPlan):
        """Makes `conv1`, `conv2` (`conv3`), as many norms, `shortcut`, `shortcut_norm` and `joined_norm`."""
        config = layers.config
        self.activation, self.preactivation = config.activation, config.preactivation
        self.residual_scale, self.deviation = config.residual_scale, plan.deviation
        width, stride = plan.width, plan.stride
        into, out_of = ("embed", "mlp"), ("mlp", "embed")
        shapes = [(plan.features, width, 3, stride, *into), (width, plan.outputs, 3, 1, *out_of)]
        if config.bottleneck:
            outer = (plan.features, width, 1, 1, *into), (width, plan.outputs, 1, 1, *out_of)
            shapes = [outer[0], (width, width, 3, stride, *into), outer[1]]
        self.depth = len(shapes)

        def norm(kind: SiteKind, features: int, name: str = "norm"):
            return layers.norm(Site(kind, plan.stage, plan.block, plan.ends_stage, features), name)

        for index, shape in enumerate(shapes, 1):
            ends = index == self.depth and not self.preactivation
            kind: SiteKind = "first" if index == 1 else "last" if ends else "inner"
            on_stream = index == 1 if self.preactivation else ends
            setattr(self, f"conv{index}", layers.conv(*shape))
            features = shape[0] if self.preactivation else shape[1]
            setattr(self, f"norm{index}", norm(kind, features, "norm" if on_stream else "mlp"))
        shape = (plan.features, plan.outputs, 1, stride, "embed", None)
        self.shortcut = layers.conv(*shape) if plan.projects else None
        normed = plan.projects and not self.preactivation
        self.shortcut_norm = norm("shortcut", plan.outputs) if normed else None
        self.joined_norm = norm("joined", plan.outputs)

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **context: Any) -> jax.Array:
        """Maps a stream to the next."""
        normed = lambda norm, x: x if norm is None else norm(x, use_running_average, **context)  # noqa: E731
        run = self._preactivated if self.preactivation else self._postactivated
        return run(x, normed)

    def _preactivated(self, x, normed):
        scaled = x if self.residual_scale is None else x / jnp.asarray(self.deviation, x.dtype)
        shared = self.activation(normed(self.norm1, scaled))
        # A convolution on the shortcut sees what the branch sees, the identity keeps the raw stream.
        r = x if self.shortcut is None else self.shortcut(shared)
        f = self.conv1(shared)
        for index in range(2, self.depth + 1):
            f = getattr(self, f"conv{index}")(self.activation(normed(getattr(self, f"norm{index}"), f)))
        f = f if self.residual_scale is None else f * jnp.asarray(self.residual_scale, f.dtype)
        return normed(self.joined_norm, r.astype(f.dtype) + f)

    def _postactivated(self, x, normed):
        f = x
        for index in range(1, self.depth + 1):
            f = self.activation(f) if index > 1 else f
            f = normed(getattr(self, f"norm{index}"), getattr(self, f"conv{index}")(f))
        r = x if self.shortcut is None else normed(self.shortcut_norm, self.shortcut(x))
        return self.activation(normed(self.joined_norm, r.astype(f.dtype) + f))
