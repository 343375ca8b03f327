"""From a public call to the function that runs: checks, choice of implementation, placement, no derivative."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._placement import Placement, placement
from pallas_kernels.projection import gpu, reference, tpu
from pallas_kernels.row_norm.vjp import check_whole_rows

KERNELS = {"mosaic_tpu": tpu, "triton": gpu}


@dataclasses.dataclass(frozen=True)
class Step:
    """Static settings: what runs, over which axes, where."""

    name: Literal["project", "deferred"]
    axes: tuple[int, ...]
    implementation: str
    place: Placement | None = None
    interpret: bool = False


def step(
    name: Literal["project", "deferred"],
    arrays: dict[str, jax.Array],
    slices: dict[str, jax.typing.ArrayLike],
    *,
    axis: int | Sequence[int] | None,
    implementation: Implementation | None,
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """`(weight,)` or, deferred, `(weight, factor)`. `slices` are numbers for each norm, the radius last."""
    weight = arrays["weight"]
    axes = _axes.normalized_axes(weight, tuple(range(weight.ndim)) if axis is None else axis)
    update = arrays.get("update", weight)
    if update.shape != weight.shape:
        raise ValueError(f"update must have the shape {weight.shape} of the weight, got {update.shape}.")
    if not jnp.issubdtype(update.dtype, jnp.floating):
        raise TypeError(f"expected a real floating update, got {update.dtype}; cast it first.")
    numbers = tuple(_per_slice(n, s, weight, axes) for n, s in slices.items())
    chosen = _dispatch.choose(implementation, ("xla", "xla"))[0]
    place = None
    if implementation is not None and chosen != "xla":
        _axes.check_kernel_dtype(chosen, *arrays.values())
        place = placement(weight, axes, mesh, spec)
        if name == "project":
            check_whole_rows(implementation, place)
    return _apply(Step(name, axes, chosen, place, interpret), *arrays.values(), *numbers)


def _per_slice(name: str, value: jax.typing.ArrayLike, weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    kept = tuple(size for axis, size in enumerate(weight.shape) if axis not in axes)
    if jnp.shape(value) not in ((), kept):
        raise ValueError(
            f"{name} must be one number, or one for each norm, {kept}: over axes {axes} of shape {weight.shape}; got "
            f"{jnp.shape(value)}."
        )
    return jnp.broadcast_to(jnp.asarray(value, _axes.wide(weight).dtype), kept)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _apply(settings: Step, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    local = functools.partial(_local, settings)
    if settings.place is None:
        return local(*arrays)
    mesh, whole = settings.place.mesh, settings.place.spec
    per_slice = PartitionSpec(*(entry for axis, entry in enumerate(whole) if axis not in settings.axes))
    count = 1 if settings.name == "project" else 2
    tensors, numbers = arrays[:-count], arrays[-count:]
    if AxisType.Explicit in mesh.axis_types:
        # One number for all norms, say, does not lie where they do, and an explicit mesh moves nothing unasked.
        numbers = tuple(jax.sharding.reshard(n, NamedSharding(mesh, per_slice)) for n in numbers)
    in_specs = (whole,) * len(tensors) + (per_slice,) * count
    # Kernels do not say over which mesh axes their results vary, so that cannot be checked.
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=(whole, per_slice)[:count], check_vma=False)(
        *tensors, *numbers
    )


@_apply.defjvp
def _refuse(settings: Step, primals: tuple, tangents: tuple):
    raise NotImplementedError(
        "a projection is the end of an optimizer's step and has no derivative here: differentiate the loss at the "
        "weights it returns, or stop the gradient (jax.lax.stop_gradient) of what goes in."
    )


def _local(settings: Step, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    axes, names = settings.axes, () if settings.place is None else settings.place.features
    module = KERNELS.get(settings.implementation)
    extra = () if module is None else (settings.interpret,)
    run = getattr(module or reference, settings.name)
    if settings.name == "project":
        weight, *updates, radius = arrays
        return (run(weight, updates[0] if updates else None, jnp.expand_dims(radius, axes), axes, *extra),)
    weight, update, before, radius = arrays
    moved, squares = run(weight, jnp.expand_dims(before, axes), update, axes, *extra)
    # Of all devices: one number for each norm.
    squares = jax.lax.psum(squares, names) if names else squares
    return moved, reference.factor(jnp.squeeze(squares, axes), radius)
