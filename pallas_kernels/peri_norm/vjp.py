"""From a public call to the operation that runs: checks, choice of implementation, placement."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._operation import Operation, differentiable
from pallas_kernels._placement import Placement, Role, check_whole_rows, placement
from pallas_kernels.peri_norm import gpu, reference, tpu
from pallas_kernels.peri_norm.formula import NormAdd

FORWARD = {"xla": reference.forward, "mosaic_tpu": tpu.forward, "triton": gpu.forward}
BACKWARD = {"xla": reference.backward, "mosaic_tpu": tpu.backward, "triton": gpu.backward}
KINDS = ("rms", "layer")


def norm_add(
    kind: str,
    x: jax.Array,
    residual: jax.Array,
    scales: dict[str, jax.Array | None],
    *,
    axis: int | Sequence[int],
    epsilon: float,
    scale_offset: float,
    implementation: Implementation | None,
    gpu_default: tuple[str, str],
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """`(h,)` for one scale, `(h, y)` for two, by the names of the arguments; both public calls end here."""
    axes = _axes.normalized_axes(x, axis)
    _check(kind, x, residual, scales, epsilon, scale_offset)
    for name, scale in scales.items():
        _axes.check_parameter(name, scale, x, axes)
    arrays = (x, residual, *scales.values())
    chosen = _dispatch.choose(implementation, gpu_default)
    place = placement(x, axes, mesh, spec)
    split = () if place is None else place.features
    twice = len(scales) == 2
    settings = NormAdd("rms" if kind == "rms" else "layer", axes, float(epsilon), float(scale_offset), twice)
    settings = dataclasses.replace(settings, interpret=interpret)
    fits = all(c == "xla" or _axes.fits_kernel(c, *arrays) for c in chosen)
    if implementation is None and (split or not fits):
        chosen = ("xla", "xla")
    if chosen == ("xla", "xla") and (implementation == "xla" or not split):
        # Nothing to place: XLA partitions it, and every derivative of JAX works.
        return _reference(settings, *arrays)
    if implementation is not None:
        _axes.check_kernel_dtype(implementation, *arrays)
        check_whole_rows(implementation, place)
    return _operation(dataclasses.replace(settings, feature_names=split), chosen, place, *arrays)


def _check(
    kind: str,
    x: jax.Array,
    residual: jax.Array,
    scales: dict[str, jax.Array | None],
    epsilon: float,
    scale_offset: float,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; expected one of {KINDS}.")
    if x.shape != residual.shape:
        raise ValueError(f"x and residual must have one shape, got {x.shape} and {residual.shape}.")
    if not jnp.issubdtype(residual.dtype, jnp.floating):
        raise TypeError(f"expected a real floating residual, got {residual.dtype}; cast it first.")
    if (x.dtype == jnp.float64) != (residual.dtype == jnp.float64):
        raise TypeError(f"x and residual must both be float64 or neither, got {x.dtype} and {residual.dtype}.")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    missing = [name for name, scale in scales.items() if scale is None]
    if scale_offset and missing:
        raise ValueError(f"scale_offset={scale_offset} is added to a scale, but {missing[0]} is None; pass zeros.")


@functools.partial(jax.jit, static_argnums=0)
def _reference(settings: NormAdd, *inputs: jax.Array | None) -> tuple[jax.Array, ...]:
    return reference.forward(settings, inputs, save=False)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _operation(
    settings: NormAdd, chosen: tuple[str, str], place: Placement | None, *inputs: jax.Array | None
) -> tuple[jax.Array, ...]:
    norms = 2 if settings.twice else 1
    scales: tuple[Role, ...] = ("feature",) * norms
    tensors: tuple[Role, ...] = ("tensor",) * norms
    statistics: tuple[Role, ...] = ("row", "row") * norms
    operation = Operation(
        FORWARD[chosen[0]],
        BACKWARD[chosen[1]],
        settings,
        inputs=("tensor", "tensor", *scales),
        outputs=tensors,
        saved=(*tensors, *statistics),
        placement=place,
    )
    return differentiable(operation, *inputs)
