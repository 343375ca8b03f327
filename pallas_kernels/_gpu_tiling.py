"""How a Triton kernel cuts an array into tiles that live in registers.

A row that fits a tile is read once; a wider one is swept again, which the caches serve.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

F32 = jnp.float32
# Elements of a tile, and features of it at most; 16 elements per thread keep two tiles and the sums in registers.
TILE, FEATURES = 4096, 8192
PER_THREAD = 16
# 64 bytes of a 16-bit dtype: two sectors of memory.
COLUMNS = 32


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an array (before, features, after) is cut into tiles of (features, rows) or, for after = 1, (rows, features).

    Attributes:
      shape: Of the whole array.
      features: Of a tile, a power of two; several tiles make a row where this is smaller.
      rows: Of a tile, a power of two that does not depend on their number: neither does the order of any sum.
      samples: Equal parts of the rows, with parameters of their own, that no tile crosses.
      per_thread: Elements of a tile that a thread holds.
    """

    shape: tuple[int, int, int]
    features: int
    rows: int
    samples: int = 1
    per_thread: int = PER_THREAD

    @property
    def axis(self) -> int:
        """The axis of the tile that holds features."""
        return 1 if self.shape[2] == 1 else 0

    @property
    def chunks(self) -> range:
        """The first feature of each tile of a row."""
        return range(0, self.shape[1], self.features)

    @property
    def side(self) -> int:
        """How many rows lie beside each other in the array; for after = 1 all of them, or those of a sample."""
        return self.shape[0] // self.samples if self.axis == 1 else self.shape[2]

    @property
    def tiles(self) -> int:
        """Tiles that hold the first feature."""
        return self.tiles_beside * (self.samples if self.axis == 1 else self.shape[0])

    @property
    def tiles_beside(self) -> int:
        """Those of rows that lie beside each other."""
        return pl.cdiv(self.side, self.rows)

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return max(1, min(32, self.features * self.rows // (32 * self.per_thread)))

    def tensor(self, array: jax.Array) -> jax.Array:
        """An array of x's shape as the kernel sees it."""
        return array.reshape(self.shape[:2] if self.axis == 1 else self.shape)

    def statistic(self, array: jax.Array) -> jax.Array:
        """A (before, 1, after) statistic as the kernel sees it."""
        return array.reshape(self.statistic_shape)

    def spec(self, array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        """All of a tensor, parameter or partial sum, with its features rounded up to whole tiles, which masks cut."""
        axis = array.ndim - 1 if array.ndim < 3 else 1
        shape = list(array.shape)
        shape[axis] = pl.cdiv(self.shape[1], self.features) * self.features
        return pl.BlockSpec(tuple(shape), lambda i: (0,) * array.ndim)

    @property
    def statistic_shape(self) -> tuple[int, ...]:
        """One number per row."""
        return self.shape[:1] if self.axis == 1 else (self.shape[0], self.shape[2])


def tiling(shape: tuple[int, int, int], size: int = TILE, *, samples: int = 1, split: int = 1) -> Tiling:
    """Tiles of about `size` elements; all of their sums are ordered alike, however many rows.

    Args:
      shape: (before, features, after).
      size: Elements of a tile.
      samples: As in `Tiling`.
      split: By how much a row's widest tile and what a thread holds of it are smaller than usual, for kernels that keep
        more tensors.
    """
    _, features, after = shape
    width, per_thread = pl.next_power_of_2(features), PER_THREAD // split
    if after == 1:
        width = min(width, FEATURES // split)
        return Tiling(shape, width, max(1, size // width), samples, per_thread)
    return Tiling(shape, min(width, size // COLUMNS), COLUMNS, samples, per_thread)


class Tile:
    """One tile of the grid inside a kernel: its masks, and what is loaded and stored through them."""

    def __init__(self, tiling: Tiling, index: jax.Array, sample: jax.Array | None = None):
        self.tiling, self.sample = tiling, sample
        per_slab = tiling.tiles_beside
        whole = tiling.axis == 1
        self.slab, beside = (None, index) if whole else (jax.lax.div(index, per_slab), jax.lax.rem(index, per_slab))
        first = beside * tiling.rows if sample is None else sample * tiling.side + beside * tiling.rows
        self.rows = pl.ds(first, tiling.rows)
        # Also false for tiles beyond the last, which the last round of a fixed number of programs may have.
        self.exist = (beside * tiling.rows + jnp.arange(tiling.rows) < tiling.side) & (index < tiling.tiles)

    def mask(self, feature: int) -> jax.Array:
        """Which elements exist."""
        axis = self.tiling.axis
        features = feature + jnp.arange(self.tiling.features) < self.tiling.shape[1]
        return jnp.expand_dims(features, 1 - axis) & jnp.expand_dims(self.exist, axis)

    def _window(self, ref, feature: int):
        features = pl.ds(feature, self.tiling.features)
        return ref.at[self.rows, features] if self.slab is None else ref.at[self.slab, features, self.rows]

    def load(self, ref, feature: int) -> jax.Array:
        """A tile of a tensor, zero where nothing exists."""
        return plt.load(self._window(ref, feature), mask=self.mask(feature), other=0.0)

    def store(self, ref, feature: int, value: jax.Array) -> None:
        """Writes a tile of a tensor."""
        plt.store(self._window(ref, feature), value.astype(ref.dtype), mask=self.mask(feature))

    def _statistics(self, ref):
        return ref.at[self.rows] if self.slab is None else ref.at[self.slab, self.rows]

    def load_statistic(self, ref) -> jax.Array:
        """A statistic that broadcasts to the tile."""
        return jnp.expand_dims(plt.load(self._statistics(ref), mask=self.exist, other=0.0), self.tiling.axis)

    def store_statistic(self, ref, value: jax.Array | None) -> None:
        """Writes a statistic."""
        assert value is not None
        plt.store(self._statistics(ref), jnp.squeeze(value, self.tiling.axis), mask=self.exist)

    def sums(self, terms) -> tuple[jax.Array, ...]:
        """Sums of `terms(feature)` over all tiles of a row."""
        return self._fold(terms, jnp.add, jnp.sum)

    def maxima(self, terms) -> tuple[jax.Array, ...]:
        """Maxima of `terms(feature)`, none of them negative, over all tiles of a row."""
        return self._fold(terms, jnp.maximum, jnp.max)

    def _fold(self, terms, combine, whole) -> tuple[jax.Array, ...]:
        totals = None
        for feature in self.tiling.chunks:
            found = [jnp.where(self.mask(feature), term, 0.0) for term in terms(feature)]
            found = tuple(whole(term, axis=self.tiling.axis, keepdims=True) for term in found)
            totals = found if totals is None else tuple(map(combine, totals, found))
        assert totals is not None
        return totals


def parameter(ref, feature: int, tiling: Tiling, sample: jax.Array | None = None) -> jax.Array | None:
    """A tile of a parameter, or of that of a sample, in float32, which broadcasts to the tiles of a tensor."""
    if ref is None:
        return None
    mask = feature + jnp.arange(tiling.features) < tiling.shape[1]
    features = pl.ds(feature, tiling.features)
    values = plt.load(ref.at[features] if sample is None else ref.at[sample, features], mask=mask, other=0.0)
    return jnp.expand_dims(values.astype(F32), 1 - tiling.axis)


def once(function, tiling: Tiling):
    """A row of one tile stays in registers; of a wider row each sweep loads every tile again."""
    return functools.cache(function) if len(tiling.chunks) == 1 else function
