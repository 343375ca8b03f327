"""Layer, RMS and compressed RMS normalization of rows, along any axis."""

from pallas_kernels.row_norm.api import crms_norm as crms_norm
from pallas_kernels.row_norm.api import layer_norm as layer_norm
from pallas_kernels.row_norm.api import rms_norm as rms_norm
