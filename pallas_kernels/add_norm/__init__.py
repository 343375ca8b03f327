"""A residual stream's addition and the norm after it, in one pass: the row norms' kernels with a second input."""

from pallas_kernels.add_norm.api import add_layer_norm as add_layer_norm
from pallas_kernels.add_norm.api import add_rms_norm as add_rms_norm
