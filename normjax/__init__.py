"""Every normalization method of the JAX world as a pure, composable transform.

A norm is a pair of pure functions, `NormTransform(init, apply)`; `chain`, `split` and `blend` compose such pairs, the
`linen` and `nnx` shells hold their parameters, and `optim` keeps the weights before them at a known effective
learning rate.
"""

from normjax import linen as linen
from normjax import nnx as nnx
from normjax import optim as optim
from normjax import precision as precision
from normjax.moments import Moments as Moments
from normjax.moments import compute_moments as compute_moments
from normjax.moments import merge_moments as merge_moments
from normjax.moments import variance as variance
from normjax.norms import attention_temperature as attention_temperature
from normjax.norms import batch_norm as batch_norm
from normjax.norms import batch_normalize as batch_normalize
from normjax.norms import crms_norm as crms_norm
from normjax.norms import crms_normalize as crms_normalize
from normjax.norms import gated_rms_norm as gated_rms_norm
from normjax.norms import gated_rms_normalize as gated_rms_normalize
from normjax.norms import group_norm as group_norm
from normjax.norms import group_normalize as group_normalize
from normjax.norms import input_scaled_rms_norm as input_scaled_rms_norm
from normjax.norms import input_scaled_rms_normalize as input_scaled_rms_normalize
from normjax.norms import instance_norm as instance_norm
from normjax.norms import instance_normalize as instance_normalize
from normjax.norms import l2_norm as l2_norm
from normjax.norms import l2_normalize as l2_normalize
from normjax.norms import layer_norm as layer_norm
from normjax.norms import layer_normalize as layer_normalize
from normjax.norms import learned_temperature as learned_temperature
from normjax.norms import ngpt_interpolate as ngpt_interpolate
from normjax.norms import ngpt_interpolation as ngpt_interpolation
from normjax.norms import ngpt_norm as ngpt_norm
from normjax.norms import ngpt_scale as ngpt_scale
from normjax.norms import normalize_with_statistics as normalize_with_statistics
from normjax.norms import partial_rms_norm as partial_rms_norm
from normjax.norms import partial_rms_normalize as partial_rms_normalize
from normjax.norms import qk_norm as qk_norm
from normjax.norms import qk_normalize as qk_normalize
from normjax.norms import relative_temperature as relative_temperature
from normjax.norms import rms_norm as rms_norm
from normjax.norms import rms_normalize as rms_normalize
from normjax.norms import scalable_softmax as scalable_softmax
from normjax.norms import scale_norm as scale_norm
from normjax.norms import scale_normalize as scale_normalize
from normjax.norms import ssmax as ssmax
from normjax.norms import ssmax_scale as ssmax_scale
from normjax.norms import visible_keys as visible_keys
from normjax.optim import decay_towards_init as decay_towards_init
from normjax.optim import effective_learning_rates as effective_learning_rates
from normjax.optim import hidden_weights as hidden_weights
from normjax.optim import nap as nap
from normjax.optim import norm_growth_schedule as norm_growth_schedule
from normjax.optim import project_weights as project_weights
from normjax.optim import track_effective_lr as track_effective_lr
from normjax.optim import weight_motion as weight_motion
from normjax.precision import Precision as Precision
from normjax.transform import NormTransform as NormTransform
from normjax.transform import blend as blend
from normjax.transform import chain as chain
from normjax.transform import split as split
from normjax.transform import stateless as stateless
