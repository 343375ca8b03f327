"""Cases of Unified Normalization and PowerNorm; the values that their backward passes write have tests of their own."""

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case


def _mean_square(axes, features):
    """The first step of both methods, in warm-up: batch normalization without centring."""

    def expected(params, x, mask):
        normalized, *_ = oracle.standardize(x, axes, mask=mask, epsilon=1e-5, centre=False)
        return oracle.affine(normalized, params, features)

    return expected


def _scaled(groups, axes, features):
    def expected(params, x, mask):
        cut, _, _ = oracle.grouped(x, None, groups)
        scaled, *_ = oracle.standardize(cut, (cut.ndim - 1,), epsilon=1e-5, centre=False)
        # Padding is scaled too, by itself: what it holds matters nowhere else.
        return _mean_square(axes, features)(params, scaled.reshape(x.shape), mask)

    return expected


CASES = [
    Case(
        "unified",
        nj.unified_norm,
        nj.unified_norm(),
        (8, 3, 4),
        _mean_square((0, 1), (2,)),
        (0, 1),
        channels_first=nj.unified_norm(feature_axes=1),
        exact_derivative=False,
        padding_in_backward=True,
    ),
    Case(
        "unified, guarded",
        nj.unified_norm,
        nj.unified_norm(
            window=(2, 3), warmup=1, outlier_filtration=True, max_skips=2, mask_backward=True, use_bias=False
        ),
        (8, 4),
        _mean_square((0,), (1,)),
        (0,),
        exact_derivative=False,
    ),
    Case(
        "power",
        nj.power_norm,
        nj.power_norm(),
        (8, 3, 4),
        _scaled(1, (0, 1), (2,)),
        (0, 1),
        channels_first=nj.power_norm(feature_axes=1),
        exact_derivative=False,
        padding_in_backward=True,
    ),
    Case(
        "power, padding left out",
        nj.power_norm,
        nj.power_norm(num_groups=2, mask_backward=True, stable=True),
        (8, 4),
        _scaled(2, (0,), (1,)),
        (0,),
        exact_derivative=False,
    ),
    Case(
        "power without group scaling",
        nj.power_norm,
        nj.power_norm(num_groups=None, mask_backward=True),
        (8, 3, 4),
        _mean_square((0, 1), (2,)),
        (0, 1),
        exact_derivative=False,
    ),
]
