"""Fused normalization kernels, and the tools that read what the compiler made of them."""

from pallas_kernels.add_norm import add_layer_norm as add_layer_norm
from pallas_kernels.add_norm import add_rms_norm as add_rms_norm
from pallas_kernels.gated_norm import gated_rms_norm as gated_rms_norm
from pallas_kernels.group_norm import group_norm as group_norm
from pallas_kernels.group_norm import instance_norm as instance_norm
from pallas_kernels.hlo import count_collectives as count_collectives
from pallas_kernels.hlo import custom_call_targets as custom_call_targets
from pallas_kernels.modulated_norm import modulate_layer_norm as modulate_layer_norm
from pallas_kernels.peri_norm import norm_add as norm_add
from pallas_kernels.peri_norm import norm_add_norm as norm_add_norm
from pallas_kernels.projection import deferred_update as deferred_update
from pallas_kernels.projection import project as project
from pallas_kernels.projection import update_and_project as update_and_project
from pallas_kernels.qk_norm import qk_norm as qk_norm
from pallas_kernels.quantized_norm import quantized_rms_norm as quantized_rms_norm
from pallas_kernels.row_norm import crms_norm as crms_norm
from pallas_kernels.row_norm import layer_norm as layer_norm
from pallas_kernels.row_norm import rms_norm as rms_norm
