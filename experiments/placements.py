"""The placements that experiments compare, by the names they have on the command line."""

from collections.abc import Callable, Mapping

import normjax as nj

PLACEMENTS: Mapping[str, Callable[[nj.NormTransform], nj.placements.Placement]] = {
    "pre": nj.placements.pre,
    "post": nj.placements.post,
    "peri": nj.placements.peri,
    "reordered": nj.placements.reordered,
    "layer_norm_scaling": nj.placements.layer_norm_scaling,
    "mix": nj.placements.mix,
    "deep": nj.placements.deep,
    "sub": nj.placements.sub,
    "hybrid": nj.placements.hybrid,
    "keel": nj.placements.keel,
    "resi_dual": nj.placements.resi_dual,
    "siamese": nj.placements.siamese,
    "layer_scale": nj.placements.layer_scale,
    "gated_residual": nj.placements.gated_residual,
    "parallel": nj.placements.parallel,
}
