"""Moments move with the weights: after `w <- c w` gradients shrink by `c`, so momenta do too."""

from collections.abc import Mapping
from typing import Any

import jax

from normjax.optim._leaves import Axes, spread, wide
from normjax.optim._paths import is_box, listing, path_string

POWERS = {"mu": 1, "nu": 2, "nu_max": 2, "trace": 1, "sum_of_squares": 2}


def moment_field(keys: tuple[Any, ...], powers: Mapping[str, int]) -> tuple[str, str] | None:
    """`(field, parameter path)` of a leaf in a moment tree, e.g. `('mu', 'Dense_0/kernel')`."""
    for i, key in enumerate(keys):
        if isinstance(key, jax.tree_util.GetAttrKey) and key.name in powers:
            return key.name, path_string(keys[i + 1 :])
    return None


def rescale_moments(
    state: Any, factors: Mapping[str, jax.Array], axes: Mapping[str, Axes], powers: Mapping[str, int]
) -> Any:
    """Divide the moments of each path by its factor to the power its field has in the gradient."""

    def rescale(keys: tuple[Any, ...], node: Any) -> Any:
        field = moment_field(keys, powers)
        if field is None or field[1] not in factors:
            return node
        name, path = field
        divisor = spread(factors[path], axes[path]) ** powers[name]
        return jax.tree.map(lambda m: (wide(m) / divisor.astype(wide(m).dtype)).astype(m.dtype), node)

    return jax.tree_util.tree_map_with_path(rescale, state, is_leaf=is_box)


def require_moments(state: Any, paths: Mapping[str, Any], powers: Mapping[str, int]) -> None:
    """Raise if the optimizer keeps no moment that is known by name for any projected weight."""
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_box)[0]
    fields = [moment_field(keys, powers) for keys, _ in leaves]
    if not any(field is not None and field[1] in paths for field in fields):
        raise ValueError(
            f"rescale_moments found none of {listing(powers)} for {listing(paths)} in the state of the inner "
            f"optimizer, {jax.tree.structure(state)}. Plain SGD has no moments and needs no rescaling; for "
            "an optimizer with fields of other names pass their powers of the gradient, e.g. {'mu': 1, 'nu': 2}."
        )
