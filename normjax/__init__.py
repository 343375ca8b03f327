"""Every normalization method of the JAX world as a pure, composable transform.

A norm is a pair of pure functions, `NormTransform(init, apply)`; `chain`, `split` and `blend` compose such pairs, the
`linen` and `nnx` shells hold their parameters, and `optim` keeps the weights before them at a known effective
learning rate.
"""

from normjax import linen as linen
from normjax import nnx as nnx
from normjax import optim as optim
from normjax import precision as precision
from normjax import weights as weights
from normjax.moments import Moments as Moments
from normjax.moments import compute_moments as compute_moments
from normjax.moments import merge_moments as merge_moments
from normjax.moments import variance as variance
from normjax.norms import batch_norm as batch_norm
from normjax.norms import batch_normalize as batch_normalize
from normjax.norms import group_norm as group_norm
from normjax.norms import group_normalize as group_normalize
from normjax.norms import instance_norm as instance_norm
from normjax.norms import instance_normalize as instance_normalize
from normjax.norms import layer_norm as layer_norm
from normjax.norms import layer_normalize as layer_normalize
from normjax.norms import normalize_with_statistics as normalize_with_statistics
from normjax.norms import rms_norm as rms_norm
from normjax.norms import rms_normalize as rms_normalize
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
from normjax.weights import Baked as Baked
from normjax.weights import WeightTransform as WeightTransform
from normjax.weights import bake as bake
from normjax.weights import by_path as by_path
from normjax.weights import centred_weight_norm as centred_weight_norm
from normjax.weights import centred_weight_normalize as centred_weight_normalize
from normjax.weights import scaled_weight_standardization as scaled_weight_standardization
from normjax.weights import scaled_weight_standardize as scaled_weight_standardize
from normjax.weights import spectral_norm as spectral_norm
from normjax.weights import spectral_normalize as spectral_normalize
from normjax.weights import weight_norm as weight_norm
from normjax.weights import weight_normalize as weight_normalize
from normjax.weights import weight_standardization as weight_standardization
from normjax.weights import weight_standardize as weight_standardize
