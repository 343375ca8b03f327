"""An RMS norm and a gate in one pass: the row norms' kernels with a second factor."""

from pallas_kernels.gated_norm.api import gated_rms_norm as gated_rms_norm
