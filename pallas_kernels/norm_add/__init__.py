"""The norm of what a layer puts out, its addition to the residual stream, and the norm of the stream, in one pass."""

from pallas_kernels.norm_add.api import norm_add as norm_add
from pallas_kernels.norm_add.api import norm_add_norm as norm_add_norm
