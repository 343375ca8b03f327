"""The networks under comparison: a residual network or a vision transformer with a norm, and whether NaP holds it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

import normjax as nj
from experiments.language_model import arms as language_model
from normjax.models import ResNet, TransformerConfig, ViT, presets, resnet_presets
from normjax.models.resnet import Stem

# Of SGD, and at the reference batch of running statistics.
MOMENTUM = 0.9
WARMUP_SHARE = 20


class Sizes(NamedTuple):
    """What a network has to fit.

    Attributes:
      shape: Of an image, `(height, width, channels)`.
      classes: Number of labels.
      config: Widths and depths.
    """

    shape: tuple[int, int, int]
    classes: int
    config: Any


class Arm(NamedTuple):
    """One line of the comparison.

    Attributes:
      label: As figures and tables show it.
      network: `network(sizes, momentum, rngs)`; `momentum` is the weight of old running statistics.
      adam: Whether it learns with Adam and not with SGD.
      held: Names of the weights that NaP holds, given the sizes; `None` for no NaP.
      every_batch: Whether it is trained at every batch size, not only at the reference.
      estimated: Whether its running statistics can be estimated anew.
    """

    label: str
    network: Callable[[Sizes, float, nnx.Rngs], nnx.Module]
    adam: bool = False
    held: Callable[[Sizes], Callable[[Any], Any]] | None = None
    every_batch: bool = True
    estimated: bool = False

    def rate(self, rate: float, batch_size: int, reference: int) -> float:
        """The learning rate at a batch size, given that at the reference: linear for SGD, by the root for Adam."""
        ratio = batch_size / reference
        return rate * (math.sqrt(ratio) if self.adam else ratio)


def schedule(rate: Any, steps: int) -> Callable[[Any], jax.Array]:
    """Linear warm-up over a twentieth of the steps to the rate, which may be traced, and a cosine to zero."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // WARMUP_SHARE, steps, 0.0)
    return lambda step: rate * shape(step)


def optimizer(arm: Arm, sizes: Sizes, rate: Any, steps: int) -> optax.GradientTransformation:
    """SGD with momentum or Adam, without weight decay, and NaP around it if the arm says so.

    Args:
      arm: The arm.
      sizes: Of its network.
      rate: Highest learning rate, a float32 scalar.
      steps: Of the whole run.

    Returns:
      The transformation.
    """
    rates = schedule(rate, steps)
    inner = optax.adam(rates) if arm.adam else optax.sgd(rates, momentum=MOMENTUM)
    return inner if arm.held is None else nj.nap(inner, mask=arm.held(sizes))


def _residual(norms: Callable[..., nj.models.ResNetConfig]) -> Callable[[Sizes, float, nnx.Rngs], nnx.Module]:
    """A residual network, given `norms(momentum, groups, **fields of ResNetConfig)`."""

    def network(sizes: Sizes, momentum: float, rngs: nnx.Rngs) -> ResNet:
        config = sizes.config
        widths = tuple(config.width * 2**stage for stage in range(config.stages))
        fields = {"depths": (config.blocks,) * config.stages, "widths": widths, "stem": Stem(3, config.stem_stride)}
        made = norms(momentum, config.groups, **fields)
        return ResNet(made, classes=sizes.classes, channels=sizes.shape[-1], rngs=rngs)

    return network


def _bn(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del groups
    return resnet_presets.bn(momentum=momentum, **fields)


def _gn(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del momentum
    return resnet_presets.gn_ws(num_groups=groups, weights=None, **fields)


def _gn_ws(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del momentum
    return resnet_presets.gn_ws(num_groups=groups, **fields)


def _bcn_ws(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    batch = nj.batch_norm(momentum=momentum, unbiased=True)
    return resnet_presets.bcn_ws(num_groups=groups, batch=batch, **fields)


def _bcn_ws_micro(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    batch = nj.estimated_batch_norm(moving_speed=1 - momentum)
    return resnet_presets.bcn_ws(num_groups=groups, batch=batch, **fields)


def _ibn_a(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del groups
    return resnet_presets.ibn_a(momentum=momentum, **fields)


def _evo_norm(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del momentum
    return resnet_presets.evo_norm(nj.evo_norm_s(num_groups=groups), **fields)


def _ln(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    # One group: layer norm of a convolution's whole output, with a scale for each channel.
    return _gn(momentum, 1, **fields)


def _nf(momentum: float, groups: int, **fields: Any) -> nj.models.ResNetConfig:
    del momentum, groups
    return resnet_presets.nf(**fields)


def _stack(placement: nj.placements.Placement, config: Any, qk_norm: nj.NormTransform | None = None):
    return presets.vit(
        layers=config.vit_layers,
        features=config.vit_width,
        heads=config.vit_heads,
        hidden=4 * config.vit_width,
        placement=placement,
        use_bias=False,
        qk_norm=qk_norm,
    )


def _pre(norm: nj.NormTransform) -> Callable[[Any], TransformerConfig]:
    return lambda config: _stack(nj.placements.pre(norm), config)


def _peri(config: Any) -> TransformerConfig:
    return _stack(nj.placements.peri(nj.layer_norm()), config, nj.layer_norm())


def _transformer(stack: Callable[[Any], TransformerConfig]) -> Callable[[Sizes, float, nnx.Rngs], nnx.Module]:
    def network(sizes: Sizes, momentum: float, rngs: nnx.Rngs) -> ViT:
        del momentum
        height, _, channels = sizes.shape
        options = {"image_size": height, "patch_size": sizes.config.patch, "classes": sizes.classes}
        return ViT(stack(sizes.config), **options, channels=channels, pool="mean", rngs=rngs)

    return network


def _convolutions(sizes: Sizes) -> Callable[[Any], Any]:
    """Every convolution is followed by a norm that takes its scale away; the head is not."""
    del sizes
    return nj.optim.hidden_weights()


def _invariant_matrices(sizes: Sizes) -> Callable[[Any], Any]:
    held = language_model.invariant(language_model.Arm("peri", "layer"), _peri(sizes.config))
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.tree_util.keystr(path, simple=True, separator="/") in held,
        params,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


ARMS: Mapping[str, Arm] = {
    "bn": Arm("BN", _residual(_bn), estimated=True),
    "gn": Arm("GN", _residual(_gn)),
    "gn_ws": Arm("GN + WS", _residual(_gn_ws)),
    "bcn_ws": Arm("BCN + WS", _residual(_bcn_ws), estimated=True),
    "bcn_ws_micro": Arm("BCN + WS, micro-batch", _residual(_bcn_ws_micro)),
    "ibn_a": Arm("IBN-a", _residual(_ibn_a), estimated=True),
    "evo_norm": Arm("EvoNorm-S0", _residual(_evo_norm)),
    "nf": Arm("no norm (NF)", _residual(_nf)),
    "ln": Arm("LN", _residual(_ln)),
    "vit_ln": Arm("ViT, LN", _transformer(_pre(nj.layer_norm())), adam=True),
    "vit_rms": Arm("ViT, RMS", _transformer(_pre(nj.rms_norm())), adam=True),
    "vit_dyt": Arm("ViT, DyT", _transformer(_pre(nj.dyt())), adam=True),
    "vit_peri": Arm("ViT, Peri-LN + QK", _transformer(_peri), adam=True, every_batch=False),
    "bn+nap": Arm("BN + NaP", _residual(_bn), held=_convolutions, every_batch=False, estimated=True),
    "gn+nap": Arm("GN + NaP", _residual(_gn), held=_convolutions, every_batch=False),
    "vit_peri+nap": Arm(
        "ViT, Peri-LN + QK + NaP", _transformer(_peri), adam=True, held=_invariant_matrices, every_batch=False
    ),
}
NAP = "+nap"
