"""Cutting a feature axis into contiguous groups, for the input and for its mask alike."""

import jax
import jax.numpy as jnp


def split_groups(
    x: jax.Array, mask: jax.Array | None, axis: int, *, num_groups: int | None = None, group_size: int | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Reshapes `axis` of length C to (groups, C / groups); exactly one of the two counts is given.

    A mask that is only broadcastable (size 1 on `axis`, or of lower rank) stays so: Flax reshapes it by the groups
    and fails.
    """
    size = x.shape[axis]
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"give exactly one of num_groups and group_size, got num_groups={num_groups}, group_size={group_size}."
        )
    name, value = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    if value is None or value < 1 or size % value:
        raise ValueError(
            f"{name}={value} does not divide the {size} features on axis {axis} of an input of shape {x.shape}; "
            f"the divisors are {[d for d in range(1, size + 1) if size % d == 0]}."
        )
    groups = value if group_size is None else size // value
    grouped = x.reshape(*x.shape[:axis], groups, size // groups, *x.shape[axis + 1 :])
    if mask is None:
        return grouped, None
    full = (1,) * (x.ndim - mask.ndim) + tuple(mask.shape)
    inner = (1, 1) if full[axis] == 1 else (groups, size // groups)
    return grouped, jnp.reshape(mask, (*full[:axis], *inner, *full[axis + 1 :]))


def check_groups(x, feature: int, num_groups: int | None, group_size: int | None) -> int:
    """Returns the number of groups, or raises `ValueError` if they do not cut the channels of `x` (or its struct)."""
    struct = jax.ShapeDtypeStruct(tuple(x.shape), x.dtype)
    sizes = {"num_groups": num_groups, "group_size": group_size}
    return jax.eval_shape(lambda a: split_groups(a, None, feature, **sizes)[0], struct).shape[feature]


def group_axes(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Maps the canonical reduction `axes` (without the group index) to those of the grouped array."""
    return tuple(sorted({a if a < axis else a + 1 for a in axes} | {axis + 1}))
