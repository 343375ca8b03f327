"""What every projection on TPU does with a block of a weight and, where there is one, of its update."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import _tpu_blocks, _tpu_tiling
from pallas_kernels._tpu_tiling import Tiling


def moved(at, w_ref, u_ref) -> jax.Array:
    """A strip of the weight or of its sum with the update, in float32."""
    w = _tpu_tiling.wide(w_ref, at)
    return w if u_ref is None else w + _tpu_tiling.wide(u_ref, at)


def scale(tile: Tiling, index, w_ref, u_ref, o_ref, factor: jax.Array) -> None:
    """Writes a group of rows times its factor."""
    at = functools.partial(tile.strips.at, tile.strips.rows(index))

    def write(features):
        o_ref[at(features)] = (moved(at(features), w_ref, u_ref) * factor).astype(o_ref.dtype)

    tile.strips.for_each_strip(write)


def squares(tile: Tiling, index, *refs) -> jax.Array:
    """Sums of squares of a group of rows."""
    at = functools.partial(tile.strips.at, tile.strips.rows(index))
    (found,) = tile.strips.sums(lambda features: (jnp.square(moved(at(features), *refs)),))
    return found


def tiling_of(shape: tuple[int, int, int], dtypes: tuple, block: int | None) -> Tiling:
    """Blocks for operands and result of these dtypes."""
    group = _tpu_blocks.group_of_rows(shape[1], dtypes)
    return _tpu_tiling.tiling(shape, group, dtypes, 0, block)


def dtypes_of(weight: jax.Array, update: jax.Array | None) -> tuple:
    """Of operands and result."""
    return weight.dtype, *([] if update is None else [update.dtype]), weight.dtype
