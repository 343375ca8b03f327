"""Residual networks of the literature as configurations: norms and where they sit; the sizes are arguments.

Each function passes on any field of `ResNetConfig` (`depths`, `widths`, `bottleneck`, `stem`, ...). Batch norms are
torch's, whose running statistics have momentum 0.9, unless told otherwise, and the unbiased variance.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normjax.models.resnet import ResNetConfig
from normjax.models.resnet_layers import Site
from normjax.norms import (
    batch_channel_norm,
    batch_norm,
    evo_norm_s,
    group_norm,
    instance_batch_norm,
    instance_norm,
)
from normjax.transform import NormTransform
from normjax.weights import scaled_weight_standardization, weight_standardization

# sqrt(2 / (1 - 1/pi)): ReLU of a standard normal variable has the variance (1 - 1/pi) / 2.
RELU_GAIN = 1.7139588594436646


def scaled_relu(x: jax.Array) -> jax.Array:
    r"""ReLU of unit variance on standard normal input: $\gamma \max(x, 0)$ with $\gamma = \sqrt{2 / (1 - 1/\pi)}$.

    Args:
      x: Floating array.

    Returns:
      An array like `x`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.models.resnet_presets.scaled_relu(2 / jnp.array([-1.0, 1.7139589])).round(3))
      [0. 2.]

    References:
      Brock, De and Smith 2021, [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692).
    """
    return jax.nn.relu(x) * jnp.asarray(RELU_GAIN, x.dtype)


def _zeros(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    del key
    return jnp.zeros(shape, dtype)


def _by_site(make: Any, zero_last: bool) -> Any:
    """One norm everywhere but after the addition, its scale zero where a branch ends."""
    usual, last = make(), make(scale_init=_zeros) if zero_last else make()
    return lambda site: {"joined": None, "last": last}.get(site.kind, usual)


def bn(*, momentum: float = 0.9, zero_last: bool = False, **sizes: Any) -> ResNetConfig:
    """Batch normalization after every convolution (ResNet).

    Args:
      momentum: Weight of the old running statistics.
      zero_last: Whether each branch's last scale starts at 0, so that blocks start as the identity.
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.resnet_presets.bn(depths=(3, 4, 6, 3), bottleneck=True).preactivation
      False

    References:
      He et al. 2015, [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385).
    """

    def make(**inits: Any) -> NormTransform:
        return batch_norm(momentum=momentum, unbiased=True, **inits)

    fields: dict[str, Any] = {"norms": _by_site(make, zero_last)}
    return ResNetConfig(**fields | sizes)


def gn_ws(*, num_groups: int = 32, zero_last: bool = False, **sizes: Any) -> ResNetConfig:
    """Group normalization over standardized weights: no batch statistics.

    Args:
      num_groups: Divides every width.
      zero_last: As in `bn`.
      **sizes: Fields of `ResNetConfig`; `weights=None` leaves group normalization alone.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.resnet_presets.gn_ws(weights=None).weights is None
      True

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """

    def make(**inits: Any) -> NormTransform:
        return group_norm(num_groups=num_groups, **inits)

    fields: dict[str, Any] = {"norms": _by_site(make, zero_last), "weights": weight_standardization()}
    return ResNetConfig(**fields | sizes)


def bcn_ws(
    *, num_groups: int = 32, batch: NormTransform | None = None, zero_last: bool = False, **sizes: Any
) -> ResNetConfig:
    """Batch-channel normalization over standardized weights.

    Args:
      num_groups: Divides every width.
      batch: The first of the two norms: `None` is batch normalization; for batches of a few images
        `normjax.estimated_batch_norm(moving_speed=...)`.
      zero_last: As in `bn`; the scale is that of the groups.
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> micro = nj.models.resnet_presets.bcn_ws(batch=nj.estimated_batch_norm(moving_speed=0.05))
      >>> micro.preactivation
      False

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """

    def make(**inits: Any) -> NormTransform:
        return batch_channel_norm(num_groups=num_groups, batch=batch, **inits)

    fields: dict[str, Any] = {"norms": _by_site(make, zero_last), "weights": weight_standardization()}
    return ResNetConfig(**fields | sizes)


def ibn_a(*, ratio: float = 0.5, momentum: float = 0.9, **sizes: Any) -> ResNetConfig:
    """IBN-Net a: instance and batch normalization side by side first in each block of the stages 1 to 3.

    Args:
      ratio: The part of the channels that instance normalization gets.
      momentum: Of batch normalization, as in `bn`.
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.resnet_presets.ibn_a(depths=(3, 4, 6, 3), bottleneck=True).depths
      (3, 4, 6, 3)

    References:
      Pan et al. 2018, [Two at Once: Enhancing Learning and Generalization Capacities via
      IBN-Net](https://arxiv.org/abs/1807.09441).
    """
    batch = batch_norm(momentum=momentum, unbiased=True)
    both = instance_batch_norm(ratio=ratio, momentum=momentum)

    def norms(site: Site) -> NormTransform | None:
        if site.kind == "joined":
            return None
        return both if site.kind == "first" and site.stage <= 3 else batch

    fields: dict[str, Any] = {"norms": norms}
    return ResNetConfig(**fields | sizes)


def ibn_b(**sizes: Any) -> ResNetConfig:
    """IBN-Net b: instance normalization after the stem and after the last addition of the stages 1 and 2.

    Args:
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.resnet_presets.ibn_b().preactivation
      False

    References:
      Pan et al. 2018, [Two at Once: Enhancing Learning and Generalization Capacities via
      IBN-Net](https://arxiv.org/abs/1807.09441).
    """
    batch, instance = batch_norm(momentum=0.9, unbiased=True), instance_norm()

    def norms(site: Site) -> NormTransform | None:
        if site.kind == "joined":
            return instance if site.ends_stage and site.stage <= 2 else None
        return instance if site.kind == "stem" else batch

    fields: dict[str, Any] = {"norms": norms}
    return ResNetConfig(**fields | sizes)


def evo_norm(norm: NormTransform | None = None, **sizes: Any) -> ResNetConfig:
    """EvoNorm: preactivation, the norm has the activation inside.

    Args:
      norm: `evo_norm_s` or `evo_norm_b`; `None` is S0 with 32 groups, or as many as divide the channels.
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.resnet_presets.evo_norm(nj.evo_norm_b()).preactivation
      True

    References:
      Liu et al. 2020, [Evolving Normalization-Activation Layers](https://arxiv.org/abs/2004.02967).
    """
    norm = evo_norm_s(fit_groups=True) if norm is None else norm
    fields: dict[str, Any] = {"norms": norm, "preactivation": True, "activation": _identity}
    return ResNetConfig(**fields | sizes)


def _identity(x: jax.Array) -> jax.Array:
    return x


def nf(*, residual_scale: float = 0.2, **sizes: Any) -> ResNetConfig:
    r"""NF-ResNet: no norms; scaled weight standardization, activations of unit variance, $x + \alpha F(x/\beta)$.

    The deviations $\beta$ are analytic (`ResNetConfig.plans`). Average pooling in shortcuts, stochastic depth and the
    zero gain of NF-Nets are left out.

    Args:
      residual_scale: $\alpha$.
      **sizes: Fields of `ResNetConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> first, second = nj.models.resnet_presets.nf(depths=(2,), widths=(8,)).plans()[0]
      >>> round(first.deviation, 4), round(second.deviation, 4)
      (1.0, 1.0198)

    References:
      Brock, De and Smith 2021, [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692).
    """
    fields = {"norms": _without, "preactivation": True, "activation": scaled_relu, "use_bias": True}
    fields |= {"weights": scaled_weight_standardization(epsilon_rule="max"), "residual_scale": residual_scale}
    return ResNetConfig(**fields | sizes)


def _without(site: Site) -> None:
    del site
