"""Where an array lives on a mesh, and what that means for the features and the rows of a norm."""

import dataclasses
from typing import Literal

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

# tensor: shaped and sharded as x. feature: one number per feature, replicated over the rows; its gradient is a sum over
# rows. sample: (samples, features), one number per feature of each entry of x's first dimension; its gradient is a sum
# over what lies between. row: a (before, 1, after) statistic. kept: one with x's dimensions.
# flat: a tensor as (what is before the last two dimensions, those two).
# group: a (batch, groups, ...) statistic of groups of whole features.
Role = Literal["tensor", "feature", "sample", "row", "kept", "flat", "group"]
PARAMETERS: tuple[Role, ...] = ("feature", "sample")


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and how `x` is split over it; `axes` are the normalized ones."""

    mesh: Mesh | AbstractMesh
    spec: PartitionSpec
    axes: tuple[int, ...]

    def names(self, dimensions: slice) -> tuple[str, ...]:
        """The mesh axes that split these dimensions."""
        entries = [e if isinstance(e, tuple) else (e,) for e in tuple(self.spec)[dimensions] if e is not None]
        return tuple(name for entry in entries for name in entry)

    @property
    def features(self) -> tuple[str, ...]:
        """The mesh axes that split the features."""
        return self.names(slice(self.axes[0], self.axes[-1] + 1))

    def summed(self, role: Role) -> tuple[str, ...]:
        """The mesh axes that a parameter's gradient is summed over: those that split the rows it serves."""
        first = 1 if role == "sample" else None
        return self.names(slice(first, self.axes[0])) + self.names(slice(self.axes[-1] + 1, None))

    def of(self, role: Role) -> PartitionSpec:
        """The specification of an array in this role."""
        first, last = self.axes[0], self.axes[-1] + 1
        if role == "tensor":
            return self.spec
        if role == "feature":
            return PartitionSpec(*tuple(self.spec)[first:last])
        if role == "group":
            return PartitionSpec(next(iter(self.spec)), self.features or None)
        if role == "kept":
            return PartitionSpec(*(None if first <= d < last else e for d, e in enumerate(self.spec)))
        if role == "flat":
            return PartitionSpec(self.names(slice(None, first - 1)) or None, self.names(slice(first - 1, last)) or None)
        if role == "sample":
            return PartitionSpec(self.spec[0], *tuple(self.spec)[first:last])
        return PartitionSpec(self.names(slice(None, first)) or None, None, self.names(slice(last, None)) or None)


def placement(
    x: jax.Array, axes: tuple[int, ...], mesh: Mesh | AbstractMesh | None, spec: PartitionSpec | None
) -> Placement | None:
    """The placement of `x`: as told, or as its type says in Explicit mode; `None` on one device and inside a shard_map.

    In Auto mode a traced array does not know its sharding, so a kernel has to be told.
    """
    if (mesh is None) != (spec is None):
        raise ValueError(f"mesh and spec belong together, got mesh={mesh!r} and spec={spec!r}.")
    sharding = jax.typeof(x).sharding
    types = {t for t, size in zip(sharding.mesh.axis_types, sharding.mesh.axis_sizes, strict=True) if size > 1}
    if AxisType.Manual in types:
        if mesh is not None or len(types) > 1:
            raise ValueError(
                f"inside a shard_map over a part of the mesh {sharding.mesh} a kernel cannot be placed again: make all "
                "mesh axes manual and pass neither mesh nor spec."
            )
        return None
    if mesh is None:
        if all(entry is None for entry in sharding.spec):
            return None
        mesh, spec = sharding.mesh, sharding.spec
    assert mesh is not None
    assert spec is not None
    if len(spec) > x.ndim:
        raise ValueError(f"spec={spec} has more entries than x of shape {x.shape} has dimensions.")
    return Placement(mesh, PartitionSpec(*spec, *[None] * (x.ndim - len(spec))), axes)


def check_whole_rows(implementation: str, place: Placement | None) -> None:
    """Kernels need the features of a row on one device."""
    if place is not None and place.features:
        raise ValueError(
            f"implementation={implementation!r} needs whole rows on each device, but {place.spec} splits the "
            f"normalized axes {place.axes} over {place.features}; reshard x, or pass implementation=None, which sums "
            "over the shards."
        )
