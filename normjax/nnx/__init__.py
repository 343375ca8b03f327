"""nnx modules: a generic `Norm` for any transform, and drop-ins for Flax's own layers."""

from normjax.nnx._drop_in import BatchNorm as BatchNorm
from normjax.nnx._drop_in import GroupNorm as GroupNorm
from normjax.nnx._drop_in import InstanceNorm as InstanceNorm
from normjax.nnx._drop_in import LayerNorm as LayerNorm
from normjax.nnx._drop_in import RMSNorm as RMSNorm
from normjax.nnx._norm import Norm as Norm
from normjax.nnx._norm import OverwriteWithGradient as OverwriteWithGradient
from normjax.nnx._weights import Reparametrized as Reparametrized
from normjax.nnx._weights import SpectralNorm as SpectralNorm
from normjax.nnx._weights import WeightNorm as WeightNorm
