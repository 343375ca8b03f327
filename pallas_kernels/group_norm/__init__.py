"""Group and instance normalization of channels-last feature maps."""

from pallas_kernels.group_norm.api import group_norm as group_norm
from pallas_kernels.group_norm.api import instance_norm as instance_norm
