"""The axes that norms over the batch and over space reduce."""

from normjax import _checks
from normjax.reductions import AxisName


def batch_axes(ndim: int, features: tuple[int, ...], axis_name: AxisName = None) -> tuple[int, ...]:
    """Returns the axes that batch normalization reduces: all that are not features, none if the batch is mapped."""
    axes = _checks.other_axes(features, ndim)
    if not axes and axis_name is None:
        raise ValueError(
            f"feature_axes={features} leave no axis of an input of rank {ndim} to take batch statistics over; "
            "inside vmap, pass axis_name= to take them over the mapped axis."
        )
    return axes


def spatial_axes(
    ndim: int, feature_axes: _checks.Axes, batch_axes: _checks.Axes, axis_name: AxisName = None
) -> tuple[int, ...]:
    """Returns the axes of a rank-`ndim` array that are neither features nor batch; none if they are all mapped."""
    features = _checks.canonical_axes(feature_axes, ndim, "feature_axes")
    batch = _checks.canonical_axes(batch_axes, ndim, "batch_axes")
    spatial = _checks.other_axes((*features, *batch), ndim)
    if set(features) & set(batch) or not (spatial or axis_name is not None):
        raise ValueError(
            f"feature_axes={feature_axes!r} and batch_axes={batch_axes!r} must be disjoint and leave at least one "
            f"axis of an input of rank {ndim} to normalize over."
        )
    return spatial
