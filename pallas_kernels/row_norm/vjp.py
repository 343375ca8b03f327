"""From a public call to the operation that runs: checks, choice of implementation, placement."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._operation import Operation, differentiable
from pallas_kernels._placement import Placement, Role, check_whole_rows, placement
from pallas_kernels.row_norm import gpu, packed_tpu, reference, tpu
from pallas_kernels.row_norm.formula import Kind, RowNorm
from pallas_kernels.row_norm.gate import Gate

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
    gate: Gate | None = None,
    samples: bool = False,
    heads: bool = False,
    implementation: Implementation | None,
    gpu_default: tuple[str, str],
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """`(y,)` of one tensor or of x and its gate, `(sum, y)` of x and a residual. All families' calls end here.

    For the arguments see `layer_norm`.
    """
    x = tensors[0]
    axes = _axes.normalized_axes(x, axis)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    if scale is None and scale_offset:
        raise ValueError(f"scale_offset={scale_offset} is added to a scale, but scale is None; pass zeros for it.")
    for name, parameter in (("scale", scale), ("bias", bias)):
        _axes.check_parameter(name, parameter, x, (0, *axes) if samples else axes)
    chosen = _dispatch.choose(implementation, gpu_default)
    place = placement(x, axes, mesh, spec)
    residual = len(tensors) == 2 and gate is None
    settings = RowNorm(
        kind, axes, float(epsilon), float(scale_offset), residual, gate, samples, heads, interpret=interpret
    )
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


def _tensors(count: int) -> tuple[Role, ...]:
    return ("tensor",) * count


@functools.partial(jax.jit, static_argnums=0)
def _reference(settings: RowNorm, *inputs: jax.Array | None) -> tuple[jax.Array, ...]:
    return reference.forward(settings, inputs, save=False)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _operation(
    settings: RowNorm, chosen: tuple[str, str], place: Placement | None, x: jax.Array, *others: jax.Array | None
) -> tuple[jax.Array, ...]:
    parameter: Role = "sample" if settings.samples else "feature"
    packed = settings.heads and "mosaic_tpu" in chosen and packed_tpu.fits(x.shape, settings.axes)
    operation = Operation(
        packed_tpu.forward if packed else FORWARD[chosen[0]],
        packed_tpu.backward if packed else BACKWARD[chosen[1]],
        settings,
        inputs=(*_tensors(len(settings.tensors)), parameter, parameter),
        outputs=_tensors(2 if settings.residual else 1),
        saved=("flat" if packed else "tensor", *_tensors(1 if settings.gate else 0), "row", "row"),
        placement=place,
    )
    return differentiable(operation, x, *others)
