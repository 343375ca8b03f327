"""Weight reparametrizations: pure functions from stored kernels to effective ones, one file a method."""

from normjax.weights._transform import WeightTransform as WeightTransform
from normjax.weights._transform import by_path as by_path
from normjax.weights.bake import Baked as Baked
from normjax.weights.bake import bake as bake
from normjax.weights.centred_weight_norm import centred_weight_norm as centred_weight_norm
from normjax.weights.centred_weight_norm import centred_weight_normalize as centred_weight_normalize
from normjax.weights.scaled_weight_standardization import scaled_weight_standardization as scaled_weight_standardization
from normjax.weights.scaled_weight_standardization import scaled_weight_standardize as scaled_weight_standardize
from normjax.weights.spectral_norm import spectral_norm as spectral_norm
from normjax.weights.spectral_norm import spectral_normalize as spectral_normalize
from normjax.weights.weight_norm import weight_norm as weight_norm
from normjax.weights.weight_norm import weight_normalize as weight_normalize
from normjax.weights.weight_standardization import weight_standardization as weight_standardization
from normjax.weights.weight_standardization import weight_standardize as weight_standardize
