"""Linen modules: a generic `Norm` for any transform, and drop-ins for Flax's own layers."""

from normjax.linen._drop_in import BatchNorm as BatchNorm
from normjax.linen._drop_in import GroupNorm as GroupNorm
from normjax.linen._drop_in import InstanceNorm as InstanceNorm
from normjax.linen._drop_in import LayerNorm as LayerNorm
from normjax.linen._drop_in import RMSNorm as RMSNorm
from normjax.linen._norm import Norm as Norm
from normjax.linen._weights import Reparametrized as Reparametrized
from normjax.linen._weights import SpectralNorm as SpectralNorm
from normjax.linen._weights import WeightNorm as WeightNorm
