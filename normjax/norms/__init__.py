"""One file per normalization method: the pure function on arrays first, its transform factory below."""

from normjax.norms._running_statistics import normalize_with_statistics as normalize_with_statistics
from normjax.norms.batch_norm import batch_norm as batch_norm
from normjax.norms.batch_norm import batch_normalize as batch_normalize
from normjax.norms.group_norm import group_norm as group_norm
from normjax.norms.group_norm import group_normalize as group_normalize
from normjax.norms.instance_norm import instance_norm as instance_norm
from normjax.norms.instance_norm import instance_normalize as instance_normalize
from normjax.norms.layer_norm import layer_norm as layer_norm
from normjax.norms.layer_norm import layer_normalize as layer_normalize
from normjax.norms.power_norm import power_norm as power_norm
from normjax.norms.rms_norm import rms_norm as rms_norm
from normjax.norms.rms_norm import rms_normalize as rms_normalize
from normjax.norms.unified_norm import unified_norm as unified_norm
