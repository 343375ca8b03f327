"""What happens to the scales and offsets of normalization layers under Normalize-and-Project."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.optim._leaves import Axes, is_float, norm, on_schedule, resolve_axes, spread, wide
from normjax.optim._paths import listing

Pairs = dict[str, tuple[str, ...]]


def find_pairs(leaves: Mapping[str, Any], names: Sequence[str]) -> Pairs:
    """`{module: paths of its scale and offset}` for modules that own nothing but leaves with these names."""
    modules: dict[str, list[str]] = {}
    for path in leaves:
        modules.setdefault(path.rpartition("/")[0], []).append(path)
    return {
        module: tuple(paths)
        for module, paths in modules.items()
        if all(p.rpartition("/")[2] in names and is_float(leaves[p]) for p in paths)
    }


def require_pairs(pairs: Pairs, leaves: Mapping[str, Any], selected: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise if a policy has nothing to act on, or acts on leaves that are projected already."""
    if not pairs:
        raise ValueError(
            f"scale_offset acts on modules that own only leaves called {listing(names)}; the parameters "
            f'{listing(leaves)} have none. Pass scale_offset_names=, or scale_offset="free".'
        )
    both = [path for paths in pairs.values() for path in paths if path in selected]
    if both:
        raise ValueError(
            f'The mask projects {listing(both)}, which scale_offset moves as well. Use scale_offset="free" '
            "or leave them out of the mask."
        )


def pair_axes(axes: Any, single: bool, pairs: Pairs, leaves: Mapping[str, Any]) -> dict[str, Axes]:
    """Reduced axes of every pair. A single `axes` value is about weights and does not apply to vectors."""
    members = {path: leaves[path] for paths in pairs.values() for path in paths}
    reduced = resolve_axes(None if single else axes, members, leaves)
    result = {}
    for module, paths in pairs.items():
        if len({(leaves[p].shape, reduced[p]) for p in paths}) > 1:
            shapes = {p: (leaves[p].shape, reduced[p]) for p in paths}
            raise ValueError(f"A scale and its offset need one shape and the same axes to be joined, got {shapes}.")
        result[module] = reduced[paths[0]]
    return result


def joint_norms(pairs: Pairs, leaves: Mapping[str, jax.Array], axes: Mapping[str, Axes]) -> dict[str, jax.Array]:
    """sqrt(|scale|² + |offset|²) of every module."""
    return {module: _joint([wide(leaves[p]) for p in paths], axes[module]) for module, paths in pairs.items()}


def _joint(members: Sequence[jax.Array], axes: Axes) -> jax.Array:
    return jnp.sqrt(sum((jnp.square(norm(x, axes)) for x in members[1:]), jnp.square(norm(members[0], axes))))


def project_pairs(
    pairs: Pairs,
    params: Mapping[str, jax.Array],
    updates: Mapping[str, jax.Array],
    radii: Mapping[str, jax.Array],
    axes: Mapping[str, Axes],
    due: jax.Array | None,
) -> dict[str, jax.Array]:
    """Updates that bring every pair back to its joint radius, where due; zero norms are left alone."""
    moving = {module: paths for module, paths in pairs.items() if all(p in updates for p in paths)}
    raw = {p: wide(updates[p]).astype(wide(params[p]).dtype) for paths in moving.values() for p in paths}

    def project() -> dict[str, jax.Array]:
        new = {}
        for module, paths in moving.items():
            moved = {p: wide(params[p]) + raw[p] for p in paths}
            length = _joint(list(moved.values()), axes[module])
            r = radii[module].astype(length.dtype)
            valid = (r > 0) & (length > 0) & jnp.isfinite(length)
            factor = spread(r / jnp.where(valid, length, 1), axes[module])
            keep = spread(valid, axes[module])
            new |= {p: jnp.where(keep, x * factor - wide(params[p]), raw[p]) for p, x in moved.items()}
        return new

    return on_schedule(due, project, lambda: raw)
