"""From a public call to the operation that runs: checks, choice of implementation, placement."""

import functools
import math

import jax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._operation import Operation, differentiable
from pallas_kernels._placement import Placement, placement
from pallas_kernels.group_norm import gpu, reference, tpu
from pallas_kernels.group_norm.formula import GroupNorm

FORWARD = {"xla": reference.forward, "mosaic_tpu": tpu.forward, "triton": gpu.forward}
BACKWARD = {"xla": reference.backward, "mosaic_tpu": tpu.backward, "triton": gpu.backward}


def group_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    num_groups: int | None,
    epsilon: float,
    implementation: Implementation | None,
    gpu_default: tuple[str, str],
    mesh: Mesh | None,
    spec: PartitionSpec | None,
    interpret: bool,
) -> jax.Array:
    """For the arguments see the public `group_norm`; `num_groups=None` gives each channel its own group."""
    axes = _axes.normalized_axes(x, -1)
    if x.ndim < 2:
        raise ValueError(f"expected an array (batch, *space, channels), got the shape {x.shape}; add a batch axis.")
    groups = x.shape[-1] if num_groups is None else num_groups
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"num_groups={groups} does not divide the {x.shape[-1]} channels of the shape {x.shape}.")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    for name, parameter in (("scale", scale), ("bias", bias)):
        _axes.check_parameter(name, parameter, x, axes)
    chosen = _dispatch.choose(implementation, gpu_default)
    place = placement(x, axes, mesh, spec)
    space = () if place is None else place.names(slice(1, -1))
    shards = _shards(place)
    whole = groups % shards == 0
    fits = all(c == "xla" or _axes.fits_kernel(c, x, scale, bias) for c in chosen)
    if implementation is None and (space or not whole or not fits):
        chosen = ("xla", "xla")
    if chosen == ("xla", "xla") and (implementation == "xla" or not space or not whole):
        # Nothing to place: XLA partitions it, and every derivative of JAX works.
        return _reference(GroupNorm(groups, float(epsilon)), x, scale, bias)
    if implementation is not None:
        _axes.check_kernel_dtype(implementation, x, scale, bias)
        _check_whole_groups(implementation, place, space, whole, groups)
    settings = GroupNorm(groups // shards, float(epsilon), space, interpret)
    (y,) = _operation(settings, chosen, place, x, scale, bias)
    return y


def _shards(place: Placement | None) -> int:
    """How many devices share the channels of a sample."""
    return 1 if place is None else math.prod(place.mesh.shape[name] for name in place.features)


def _check_whole_groups(
    implementation: str, place: Placement | None, space: tuple[str, ...], whole: bool, groups: int
) -> None:
    if place is not None and (space or not whole):
        raise ValueError(
            f"implementation={implementation!r} needs whole groups on each device, but {place.spec} splits "
            f"{f'the space over {space}' if space else f'the channels of {groups} groups over {place.features}'}; "
            "reshard x, or pass implementation=None, which sums over the shards."
        )


@functools.partial(jax.jit, static_argnums=0)
def _reference(settings: GroupNorm, *inputs: jax.Array | None) -> jax.Array:
    (y,), _ = reference.forward(settings, inputs, save=False)
    return y


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _operation(
    settings: GroupNorm, chosen: tuple[str, str], place: Placement | None, *inputs: jax.Array | None
) -> tuple[jax.Array, ...]:
    operation = Operation(
        FORWARD[chosen[0]],
        BACKWARD[chosen[1]],
        settings,
        inputs=("tensor", "feature", "feature"),
        outputs=("tensor",),
        saved=("tensor", "group", "group"),
        placement=place,
    )
    return differentiable(operation, *inputs)
