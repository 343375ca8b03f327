"""From a public call to the function that runs: checks, choice of implementation, placement, no derivative."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._placement import Placement, check_whole_rows, placement
from pallas_kernels.projection import gpu, reference, tpu

KERNELS = {"mosaic_tpu": tpu.project, "triton": gpu.project}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static settings: the axes of a norm, what runs, where."""

    axes: tuple[int, ...]
    implementation: str = "xla"
    place: Placement | None = None
    interpret: bool = False


def project(
    weight: jax.Array,
    update: jax.Array | None,
    radius: jax.typing.ArrayLike,
    *,
    axis: int | Sequence[int] | None,
    implementation: Implementation | None,
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> jax.Array:
    """For the arguments see the public calls, which end here."""
    axes = checked_axes(weight, update, axis)
    radius = per_norm("radius", radius, weight, axes)
    chosen = _dispatch.choose(implementation, ("xla", "xla"))[0]
    settings = Settings(axes)
    if implementation is not None and chosen != "xla":
        _axes.check_kernel_dtype(chosen, weight, update)
        place = placement(weight, axes, mesh, spec)
        check_whole_rows(implementation, place)
        settings = Settings(axes, chosen, place, interpret)
    return _project(settings, weight, update, radius)


def deferred(
    weight: jax.Array,
    factor: jax.typing.ArrayLike,
    update: jax.Array,
    radius: jax.typing.ArrayLike,
    axis: int | Sequence[int] | None,
) -> tuple[jax.Array, jax.Array]:
    """As `deferred_update`."""
    axes = checked_axes(weight, update, axis)
    before, radius = (per_norm(n, v, weight, axes) for n, v in (("factor", factor), ("radius", radius)))
    return _deferred(Settings(axes), weight, before, update, radius)


def checked_axes(weight: jax.Array, update: jax.Array | None, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """The axes of one norm, of a weight that the update fits."""
    axes = _axes.normalized_axes(weight, tuple(range(weight.ndim)) if axis is None else axis)
    if update is not None and update.shape != weight.shape:
        raise ValueError(f"update must have the shape {weight.shape} of the weight, got {update.shape}.")
    if update is not None and not jnp.issubdtype(update.dtype, jnp.floating):
        raise TypeError(f"expected a real floating update, got {update.dtype}; cast it first.")
    return axes


def per_norm(name: str, value: jax.typing.ArrayLike, weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """One number for each norm, of the shape of the axes that are left."""
    kept = tuple(size for axis, size in enumerate(weight.shape) if axis not in axes)
    if jnp.shape(value) not in ((), kept):
        raise ValueError(
            f"{name} must be one number, or one for each norm, {kept}: over axes {axes} of shape {weight.shape}; got "
            f"{jnp.shape(value)}."
        )
    return jnp.broadcast_to(jnp.asarray(value, _axes.wide(weight).dtype), kept)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _project(settings: Settings, weight: jax.Array, update: jax.Array | None, radius: jax.Array) -> jax.Array:
    def local(weight, update, radius):
        radius = jnp.expand_dims(radius, settings.axes)
        if settings.implementation == "xla":
            return reference.project(weight, update, radius, settings.axes)
        return KERNELS[settings.implementation](weight, update, radius, settings.axes, settings.interpret)

    if settings.place is None:
        return local(weight, update, radius)
    mesh, whole = settings.place.mesh, settings.place.spec
    kept = PartitionSpec(*(entry for axis, entry in enumerate(whole) if axis not in settings.axes))
    if AxisType.Explicit in mesh.axis_types:
        # One number for all norms, say, does not lie where they do, and an explicit mesh moves nothing unasked.
        radius = jax.sharding.reshard(radius, NamedSharding(mesh, kept))
    # Kernels do not say over which mesh axes their results vary, so that cannot be checked.
    placed = jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, kept), out_specs=whole, check_vma=False)
    return placed(weight, update, radius)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _deferred(
    settings: Settings, weight: jax.Array, before: jax.Array, update: jax.Array, radius: jax.Array
) -> tuple[jax.Array, jax.Array]:
    before = jnp.expand_dims(before, settings.axes)
    moved, squares = reference.deferred(weight, before, update, settings.axes)
    return moved, reference.factor(squares, radius)


@_project.defjvp
@_deferred.defjvp
def _refuse(settings: Settings, primals: tuple, tangents: tuple):
    raise NotImplementedError(
        "a projection is the end of an optimizer's step and has no derivative here: differentiate the loss at the "
        "weights it returns, or stop the gradient (jax.lax.stop_gradient) of what goes in."
    )
