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
from normjax.norms import adain as adain
from normjax.norms import adain_normalize as adain_normalize
from normjax.norms import batch_norm as batch_norm
from normjax.norms import batch_normalize as batch_normalize
from normjax.norms import coloring_penalty as coloring_penalty
from normjax.norms import content_aware_adain as content_aware_adain
from normjax.norms import content_aware_adain_normalize as content_aware_adain_normalize
from normjax.norms import coordinate_modulation as coordinate_modulation
from normjax.norms import gdwct as gdwct
from normjax.norms import gdwct_coloring as gdwct_coloring
from normjax.norms import gdwct_normalize as gdwct_normalize
from normjax.norms import group_covariance as group_covariance
from normjax.norms import group_norm as group_norm
from normjax.norms import group_normalize as group_normalize
from normjax.norms import instance_norm as instance_norm
from normjax.norms import instance_normalize as instance_normalize
from normjax.norms import interpolate_grid as interpolate_grid
from normjax.norms import layer_norm as layer_norm
from normjax.norms import layer_normalize as layer_normalize
from normjax.norms import learned_region_norm as learned_region_norm
from normjax.norms import learned_region_normalize as learned_region_normalize
from normjax.norms import normalize_with_statistics as normalize_with_statistics
from normjax.norms import region_norm as region_norm
from normjax.norms import region_normalize as region_normalize
from normjax.norms import rms_norm as rms_norm
from normjax.norms import rms_normalize as rms_normalize
from normjax.norms import spade as spade
from normjax.norms import spade_modulate as spade_modulate
from normjax.norms import whitening_penalty as whitening_penalty
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
