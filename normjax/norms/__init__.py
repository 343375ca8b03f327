"""One file per normalization method: the pure function on arrays first, its transform factory below."""

from normjax.norms import point_functions as point_functions
from normjax.norms._running_statistics import normalize_with_statistics as normalize_with_statistics
from normjax.norms.batch_norm import batch_norm as batch_norm
from normjax.norms.batch_norm import batch_normalize as batch_normalize
from normjax.norms.derf import derf as derf
from normjax.norms.derf import dynamic_erf as dynamic_erf
from normjax.norms.dyt import dynamic_tanh as dynamic_tanh
from normjax.norms.dyt import dyt as dyt
from normjax.norms.evo_norm_b import evo_norm_b as evo_norm_b
from normjax.norms.evo_norm_b import evo_normalize_b as evo_normalize_b
from normjax.norms.evo_norm_s import evo_norm_s as evo_norm_s
from normjax.norms.evo_norm_s import evo_normalize_s as evo_normalize_s
from normjax.norms.filter_response_norm import filter_response_norm as filter_response_norm
from normjax.norms.filter_response_norm import filter_response_normalize as filter_response_normalize
from normjax.norms.group_norm import group_norm as group_norm
from normjax.norms.group_norm import group_normalize as group_normalize
from normjax.norms.instance_norm import instance_norm as instance_norm
from normjax.norms.instance_norm import instance_normalize as instance_normalize
from normjax.norms.layer_norm import layer_norm as layer_norm
from normjax.norms.layer_norm import layer_normalize as layer_normalize
from normjax.norms.layer_scale import layer_scale as layer_scale
from normjax.norms.layer_scale import scale_features as scale_features
from normjax.norms.point_norm import point_norm as point_norm
from normjax.norms.point_norm import point_normalize as point_normalize
from normjax.norms.rms_norm import rms_norm as rms_norm
from normjax.norms.rms_norm import rms_normalize as rms_normalize
