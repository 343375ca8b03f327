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
from normjax.norms import adaptive_balance_norm as adaptive_balance_norm
from normjax.norms import adaptive_balance_normalize as adaptive_balance_normalize
from normjax.norms import batch_channel_norm as batch_channel_norm
from normjax.norms import batch_norm as batch_norm
from normjax.norms import batch_normalize as batch_normalize
from normjax.norms import batch_renorm as batch_renorm
from normjax.norms import batch_renormalize as batch_renormalize
from normjax.norms import continual_norm as continual_norm
from normjax.norms import estimated_batch_norm as estimated_batch_norm
from normjax.norms import group_norm as group_norm
from normjax.norms import group_normalize as group_normalize
from normjax.norms import instance_batch_norm as instance_batch_norm
from normjax.norms import instance_norm as instance_norm
from normjax.norms import instance_normalize as instance_normalize
from normjax.norms import layer_norm as layer_norm
from normjax.norms import layer_normalize as layer_normalize
from normjax.norms import normalize_with_statistics as normalize_with_statistics
from normjax.norms import prep_batch_norm as prep_batch_norm
from normjax.norms import rep_batch_norm as rep_batch_norm
from normjax.norms import rms_norm as rms_norm
from normjax.norms import rms_normalize as rms_normalize
from normjax.norms import switch_norm as switch_norm
from normjax.norms import switch_normalize as switch_normalize
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
