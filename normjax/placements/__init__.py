"""Where norms sit around the sublayers of a residual network, as values."""

from normjax.placements.invariance import scale_invariant_matrices as scale_invariant_matrices
from normjax.placements.schemes import deep as deep
from normjax.placements.schemes import gated_residual as gated_residual
from normjax.placements.schemes import hybrid as hybrid
from normjax.placements.schemes import keel as keel
from normjax.placements.schemes import layer_norm_scaling as layer_norm_scaling
from normjax.placements.schemes import layer_scale as layer_scale
from normjax.placements.schemes import mix as mix
from normjax.placements.schemes import normalized_residual as normalized_residual
from normjax.placements.schemes import parallel as parallel
from normjax.placements.schemes import peri as peri
from normjax.placements.schemes import post as post
from normjax.placements.schemes import pre as pre
from normjax.placements.schemes import reordered as reordered
from normjax.placements.schemes import resi_dual as resi_dual
from normjax.placements.schemes import siamese as siamese
from normjax.placements.schemes import sub as sub
from normjax.placements.step import Placement as Placement
from normjax.placements.step import Step as Step
