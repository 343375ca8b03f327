"""Folding for inference and exact conversions: rules as pure functions, and explicit plans that apply them."""

from normjax.fold.centre import center_out as center_out
from normjax.fold.centre import center_rows as center_rows
from normjax.fold.centre import compress_in as compress_in
from normjax.fold.centre import compress_out as compress_out
from normjax.fold.channel_map import apply_map_norm as apply_map_norm
from normjax.fold.channel_map import residual_map as residual_map
from normjax.fold.integer_layer_norm import integer_layer_normalize as integer_layer_normalize
from normjax.fold.integer_layer_norm import integer_root as integer_root
from normjax.fold.quantize import Equalization as Equalization
from normjax.fold.quantize import equalization as equalization
from normjax.fold.quantize import equalize_ln_linear as equalize_ln_linear
from normjax.fold.quantize import moment_match as moment_match
from normjax.fold.quantize import percentile_quantizer as percentile_quantizer
from normjax.fold.quantize import quantize_log_sqrt2 as quantize_log_sqrt2
from normjax.fold.quantize import quantize_uniform as quantize_uniform
from normjax.fold.quantize import range_quantizer as range_quantizer
from normjax.fold.quantize import retune_bn_stats as retune_bn_stats
from normjax.fold.rules import affine_after as affine_after
from normjax.fold.rules import affine_before as affine_before
from normjax.fold.rules import bn_after as bn_after
from normjax.fold.rules import conv_pad_value as conv_pad_value
from normjax.fold.rules import qk_gains as qk_gains
from normjax.fold.rules import running_affine as running_affine
from normjax.fold.rules import scale_stream as scale_stream
