"""How often the grid of a Pallas kernel copies each of its arrays: the one thing the HLO around it cannot tell.

The pipeline copies a block when its index differs from that of the step before, so an index map that leaves a block and
comes back reads it again.
"""

import math
from typing import Any

import jax
import jax.extend.core
import numpy as np


def copies(closed: jax.extend.core.ClosedJaxpr) -> dict[str, list[float]]:
    """`{kernel: [bytes copied / bytes of the array, for every operand, then every result]}` of a traced function."""
    found: dict[str, list[float]] = {}
    for equation in _equations(closed.jaxpr):
        if equation.primitive.name == "pallas_call":
            grid = equation.params["grid_mapping"]
            name = equation.params["name"]
            found[name] = [_copied(mapping, grid.grid) for mapping in grid.block_mappings]
    return found


def _equations(jaxpr: Any):
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    yield from _equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _copied(mapping: Any, grid: tuple[int, ...]) -> float:
    if not all(isinstance(size, int) for size in grid):
        return 1.0
    shape = [int(getattr(size, "block_size", 1)) for size in mapping.block_shape]
    steps = [s.ravel().astype(np.int32) for s in np.meshgrid(*map(np.arange, grid), indexing="ij")]
    index_map = jax.extend.core.jaxpr_as_fun(mapping.index_map_jaxpr)
    found = jax.vmap(index_map)(*steps)
    indices = np.stack([np.broadcast_to(np.asarray(i), steps[0].shape) for i in found])
    changes = 1 + int(np.any(indices[:, 1:] != indices[:, :-1], axis=0).sum())
    array = mapping.array_aval.shape
    blocks = math.prod(-(-size // block) for size, block in zip(array, shape, strict=True))
    # Blocks at an edge are copied as far as they exist: counted in blocks, a partial one is no excess.
    return changes / blocks
