"""A norm whose scale and shift a condition writes for each sample: the row norms' kernels, sample by sample."""

from pallas_kernels.modulated_norm.api import modulate_layer_norm as modulate_layer_norm
