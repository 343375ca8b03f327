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
from normjax.norms import ada_gate as ada_gate
from normjax.norms import ada_layer_norm as ada_layer_norm
from normjax.norms import ada_modulation as ada_modulation
from normjax.norms import ada_rms_norm as ada_rms_norm
from normjax.norms import ada_rms_normalize as ada_rms_normalize
from normjax.norms import ada_time_depth_norm as ada_time_depth_norm
from normjax.norms import batch_norm as batch_norm
from normjax.norms import batch_normalize as batch_normalize
from normjax.norms import fill_holes as fill_holes
from normjax.norms import fixed_scale as fixed_scale
from normjax.norms import gdn as gdn
from normjax.norms import gdn_normalize as gdn_normalize
from normjax.norms import group_norm as group_norm
from normjax.norms import group_normalize as group_normalize
from normjax.norms import instance_norm as instance_norm
from normjax.norms import instance_normalize as instance_normalize
from normjax.norms import layer_norm as layer_norm
from normjax.norms import layer_normalize as layer_normalize
from normjax.norms import lower_bound as lower_bound
from normjax.norms import mask_carrying_norm as mask_carrying_norm
from normjax.norms import masked_global_mean as masked_global_mean
from normjax.norms import modulate as modulate
from normjax.norms import normalize_with_statistics as normalize_with_statistics
from normjax.norms import rms_norm as rms_norm
from normjax.norms import rms_normalize as rms_normalize
from normjax.norms import self_modulate as self_modulate
from normjax.norms import self_modulation as self_modulation
from normjax.norms import sinusoidal_embedding as sinusoidal_embedding
from normjax.norms import time_dependent_layer_norm as time_dependent_layer_norm
from normjax.norms import time_dependent_parameter as time_dependent_parameter
from normjax.norms import time_dependent_rms_norm as time_dependent_rms_norm
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
