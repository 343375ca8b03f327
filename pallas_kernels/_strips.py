"""How a TPU kernel sweeps a tile that lies in VMEM: in groups of rows, each group in strips of features.

A strip fills a few vector registers; sums stay per lane until the sweep ends, and what a second sweep needs is loaded
again, since a spilled value costs the one store slot that the output needs too.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# What `pl.ds` makes: static ones become slices.
Slice = slice | pl.Slice
LANES = 128
# Longer sweeps are loops of this many strips: the code of a kernel would grow with the width of the row.
UNROLLED = 64


@dataclasses.dataclass(frozen=True)
class Strips:
    """The geometry of a tile.

    Attributes:
      feature_axis: 1 for a tile of (rows, features), 0 for (features, columns).
      features: How many features a row has.
      group: Rows (columns) per group.
      groups: Groups in the tile.
      lanes: Features per strip where they lie along the lanes.
    """

    feature_axis: int
    features: int
    group: int
    groups: int
    lanes: int = LANES

    @property
    def width(self) -> int:
        """Features per strip: the lanes of a register or of several, or eight registers of sublanes."""
        return self.lanes if self.feature_axis == 1 else 64

    def rows(self, index: jax.Array | int) -> Slice:
        """The rows of a group."""
        if isinstance(index, int):
            return pl.ds(index * self.group, self.group)
        return pl.ds(pl.multiple_of(index * self.group, self.group), self.group)

    def at(self, rows: Slice, features: Slice) -> tuple[Slice, Slice]:
        """The index of a strip in the tile."""
        return (rows, features) if self.feature_axis == 1 else (features, rows)

    def of_features(self, features: Slice) -> tuple[Slice, Slice]:
        """The index of a strip in a parameter, (1, features) or (features, 1)."""
        return (slice(0, 1), features) if self.feature_axis == 1 else (features, slice(0, 1))

    def for_each_group(self, body: Callable[[jax.Array | int], None]) -> None:
        """Runs the body for the index of each group."""
        if self.groups == 1:
            body(0)
        else:
            jax.lax.fori_loop(0, self.groups, lambda i, _: body(i), None)

    def sums(self, terms: Callable[[Slice], tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
        """Sums over all features of each of the terms, which keep their axis."""
        return self._fold(terms, jnp.add, jnp.sum)

    def maxima(self, terms: Callable[[Slice], tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
        """Maxima over all features of each of the terms, none of them negative, which keep their axis."""
        return self._fold(terms, jnp.maximum, jnp.max)

    def _fold(self, terms, combine, whole) -> tuple[jax.Array, ...]:
        full, tail = divmod(self.features, self.width)
        add = lambda features, found: tuple(map(combine, found, terms(features)))  # noqa: E731
        reduce = functools.partial(whole, axis=self.feature_axis, keepdims=True)
        totals = None
        if full:
            shape = (self.group, self.width) if self.feature_axis == 1 else (self.width, self.group)
            count = len(jax.eval_shape(lambda: terms(pl.ds(0, self.width))))
            zeros = tuple(jnp.zeros(shape, jnp.float32) for _ in range(count))
            totals = tuple(map(reduce, self._loop(full, add, zeros)))
        if tail:
            last = tuple(map(reduce, terms(pl.ds(full * self.width, tail))))
            totals = last if totals is None else tuple(map(combine, totals, last))
        assert totals is not None
        return totals

    def for_each_strip(self, body: Callable[[Slice], None]) -> None:
        """Runs the body for each strip of features."""
        full, tail = divmod(self.features, self.width)
        self._loop(full, lambda features, _: body(features), None)
        if tail:
            body(pl.ds(full * self.width, tail))

    def _loop(self, strips, body, carry):
        def several(first, count, carry):
            for k in range(count):
                start = (first + k) * self.width
                start = start if isinstance(start, int) else pl.multiple_of(start, self.width)
                carry = body(pl.ds(start, self.width), carry)
            return carry

        loops, rest = divmod(strips, UNROLLED) if strips > UNROLLED else (0, strips)
        if loops:
            carry = jax.lax.fori_loop(0, loops, lambda i, carry: several(i * UNROLLED, UNROLLED, carry), carry)
        return several(loops * UNROLLED, rest, carry)
