"""The convolutions and norms of a residual network, as its configuration has them."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import conv_names, named_norm
from normjax.nnx import Norm, Reparametrized
from normjax.precision import promote

if TYPE_CHECKING:
    from normjax.models.resnet import ResNetConfig

SiteKind = Literal["stem", "first", "inner", "last", "shortcut", "joined", "final"]


class Site(NamedTuple):
    """A place where a residual network may have a norm.

    Attributes:
      kind: `"first"`, `"inner"` and `"last"` number the norms of a branch; before an addition only `"last"` stands,
        which preactivation does not have. `"shortcut"` follows a shortcut's convolution (not with preactivation),
        `"joined"` the addition, `"stem"` the first convolution, and `"final"` ends a preactivated network.
      stage: From 1; 0 for the stem.
      block: Within the stage, from 1.
      ends_stage: Whether the block is the stage's last.
      features: Channels there.
    """

    kind: SiteKind
    stage: int
    block: int
    ends_stage: bool
    features: int


class Layers(NamedTuple):
    """Makes layers of one configuration from one source of random numbers."""

    config: "ResNetConfig"
    rngs: nnx.Rngs

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int, *names: str | None) -> Any:
        """A convolution that keeps height and width but for its stride; the names are those of its features."""
        # torch's padding: "SAME" pads the far side only where a stride of 2 meets an even size.
        layer = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=self.config.use_bias,
            kernel_init=self.config.kernel_init,
            dtype=self.config.dtype,
            param_dtype=self.config.param_dtype,
            **conv_names(*names),
            rngs=self.rngs,
        )
        if self.config.weights is None:
            return layer
        return Reparametrized(layer, {"kernel": self.config.weights}, rngs=self.rngs)

    def norm(self, site: Site, name: str = "norm") -> Norm | None:
        """The norm of a site, or `None`; the name is that of its features."""
        transform = self.config.norm(site)
        # A float64 network has float64 statistics; others have float32 ones.
        wide = promote(jnp.float32, self.config.param_dtype)
        return None if transform is None else named_norm(transform, site.features, self.rngs, name, dtype=wide)
