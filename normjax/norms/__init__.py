"""One file per normalization method: the pure function on arrays first, its transform factory below."""

from normjax.norms._running_statistics import normalize_with_statistics as normalize_with_statistics
from normjax.norms.adaptive_balance_norm import adaptive_balance_norm as adaptive_balance_norm
from normjax.norms.adaptive_balance_norm import adaptive_balance_normalize as adaptive_balance_normalize
from normjax.norms.batch_channel_norm import batch_channel_norm as batch_channel_norm
from normjax.norms.batch_norm import batch_norm as batch_norm
from normjax.norms.batch_norm import batch_normalize as batch_normalize
from normjax.norms.batch_renorm import batch_renorm as batch_renorm
from normjax.norms.batch_renorm import batch_renormalize as batch_renormalize
from normjax.norms.continual_norm import continual_norm as continual_norm
from normjax.norms.estimated_batch_norm import estimated_batch_norm as estimated_batch_norm
from normjax.norms.group_norm import group_norm as group_norm
from normjax.norms.group_norm import group_normalize as group_normalize
from normjax.norms.instance_batch_norm import instance_batch_norm as instance_batch_norm
from normjax.norms.instance_norm import instance_norm as instance_norm
from normjax.norms.instance_norm import instance_normalize as instance_normalize
from normjax.norms.layer_norm import layer_norm as layer_norm
from normjax.norms.layer_norm import layer_normalize as layer_normalize
from normjax.norms.prep_batch_norm import prep_batch_norm as prep_batch_norm
from normjax.norms.rep_batch_norm import rep_batch_norm as rep_batch_norm
from normjax.norms.rms_norm import rms_norm as rms_norm
from normjax.norms.rms_norm import rms_normalize as rms_normalize
from normjax.norms.switch_norm import switch_norm as switch_norm
from normjax.norms.switch_norm import switch_normalize as switch_normalize
