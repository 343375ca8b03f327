"""From a public call to the operation that runs: checks, choice of implementation, placement."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._operation import Operation, differentiable
from pallas_kernels._placement import Placement, Role, placement
from pallas_kernels.row_norm import gpu, reference, tpu
from pallas_kernels.row_norm.formula import Kind, RowNorm

FORWARD = {"xla": reference.forward, "mosaic_tpu": tpu.forward, "triton": gpu.forward}
BACKWARD = {"xla": reference.backward, "mosaic_tpu": tpu.backward, "triton": gpu.backward}


def row_norm(
    kind: Kind,
    tensors: tuple[jax.Array, ...],
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    axis: int | Sequence[int],
    epsilon: float,
    scale_offset: float = 0.0,
    implementation: Implementation | None,
    gpu_default: tuple[str, str],
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """`(y,)` of one tensor, `(sum, y)` of two. For the arguments see `layer_norm`; all families' calls end here."""
    x = tensors[0]
    axes = _axes.normalized_axes(x, axis)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    if scale is None and scale_offset:
        raise ValueError(f"scale_offset={scale_offset} is added to a scale, but scale is None; pass zeros for it.")
    for name, parameter in (("scale", scale), ("bias", bias)):
        _axes.check_parameter(name, parameter, x, axes)
    chosen = _dispatch.choose(implementation, gpu_default)
    place = placement(x, axes, mesh, spec)
    settings = RowNorm(kind, axes, float(epsilon), float(scale_offset), len(tensors) == 2, interpret=interpret)
    split = () if place is None else place.features
    fits = all(c == "xla" or _axes.fits_kernel(c, *tensors, scale, bias) for c in chosen)
    if implementation is None and (split or not fits):
        chosen = ("xla", "xla")
    if chosen == ("xla", "xla") and (implementation == "xla" or not split):
        # Nothing to place: XLA partitions it, and every derivative of JAX works.
        return _reference(settings, *tensors, scale, bias)
    if implementation is not None:
        _axes.check_kernel_dtype(implementation, *tensors, scale, bias)
        check_whole_rows(implementation, place)
    settings = dataclasses.replace(settings, feature_names=split)
    return _operation(settings, chosen, place, *tensors, scale, bias)


def check_whole_rows(implementation: Implementation, place: Placement | None) -> None:
    """A kernel sees whole rows."""
    if place is not None and place.features:
        raise ValueError(
            f"implementation={implementation!r} needs whole rows on each device, but {place.spec} splits the "
            f"normalized axes {place.axes} over {place.features}; reshard x, or pass implementation=None, which sums "
            "over the shards."
        )


@functools.partial(jax.jit, static_argnums=0)
def _reference(settings: RowNorm, *inputs: jax.Array | None) -> tuple[jax.Array, ...]:
    return reference.forward(settings, inputs, save=False)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _operation(
    settings: RowNorm, chosen: tuple[str, str], place: Placement | None, *inputs: jax.Array | None
) -> tuple[jax.Array, ...]:
    tensors: tuple[Role, ...] = ("tensor",) * (len(inputs) - 2)
    operation = Operation(
        FORWARD[chosen[0]],
        BACKWARD[chosen[1]],
        settings,
        inputs=(*tensors, "feature", "feature"),
        outputs=tensors,
        saved=("tensor", "row", "row"),
        placement=place,
    )
    return differentiable(operation, *inputs)
