"""The norm of what a layer puts out, its addition to the residual stream, and the norm of the stream, in one pass."""

from pallas_kernels.peri_norm.api import norm_add as norm_add
from pallas_kernels.peri_norm.api import norm_add_norm as norm_add_norm
