"""What a network can still learn: the scale-invariance test, plasticity metrics, probes and saliency."""

from normjax.diagnostics.alignment import gradient_cosines as gradient_cosines
from normjax.diagnostics.invariance import ScaleInvariance as ScaleInvariance
from normjax.diagnostics.invariance import WeightInvariance as WeightInvariance
from normjax.diagnostics.invariance import scale_invariance as scale_invariance
from normjax.diagnostics.jacobians import jacobian_norm as jacobian_norm
from normjax.diagnostics.jacobians import neural_tangent_kernel as neural_tangent_kernel
from normjax.diagnostics.jacobians import ntk_rank as ntk_rank
from normjax.diagnostics.normgrad import AffineGradients as AffineGradients
from normjax.diagnostics.normgrad import normgrad_map as normgrad_map
from normjax.diagnostics.normgrad import per_position_affine_grads as per_position_affine_grads
from normjax.diagnostics.normgrad import saliency as saliency
from normjax.diagnostics.probes import linen_activations as linen_activations
from normjax.diagnostics.probes import nnx_activations as nnx_activations
from normjax.diagnostics.ranks import effective_rank as effective_rank
from normjax.diagnostics.ranks import feature_rank as feature_rank
from normjax.diagnostics.ranks import srank as srank
from normjax.diagnostics.ranks import stable_rank as stable_rank
from normjax.diagnostics.trees import global_norm as global_norm
from normjax.diagnostics.trees import weight_distances as weight_distances
from normjax.diagnostics.trees import weight_norms as weight_norms
from normjax.diagnostics.trees import weight_rotations as weight_rotations
from normjax.diagnostics.units import active_fraction as active_fraction
from normjax.diagnostics.units import dead_units as dead_units
from normjax.diagnostics.units import dormant_scores as dormant_scores
from normjax.diagnostics.units import dormant_units as dormant_units
from normjax.diagnostics.units import linearised_units as linearised_units
