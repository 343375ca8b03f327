"""Where a TPU kernel stands: the sample, the phase and the block of its step, and what lies there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.group_norm import tpu_sweeps
from pallas_kernels.group_norm.tpu_sweeps import wide
from pallas_kernels.group_norm.tpu_tiling import F32, Maps


class Step:
    """Where a kernel stands in its grid; asked for first, because the interpreter does not know it inside of a loop."""

    def __init__(self, ref: dict[str, Any], tile: Maps):
        self.ref, self.tile = ref, tile
        _, self.sample, self.phase, self.index = (pl.program_id(d) for d in range(4))
        self.groups = tile.groups // tile.tiles

    def in_phase(self, phase: int, body: Callable[[], None]) -> None:
        """Runs the body in that phase; a sample of one block has both in one step."""
        if self.tile.mode == "whole":
            body()
        else:
            pl.when(self.phase == phase)(body)

    def planes(self, block: jax.Array | int) -> jax.Array | int:
        """Planes of a block that exist."""
        count, size = self.tile.shape[1], self.tile.block
        return size if count % size == 0 else jnp.minimum(size, count - block * size)

    def keep(self, *names: str) -> None:
        """Copies the blocks for the second phase."""
        if self.tile.mode == "kept":
            first = self.index * self.tile.block
            for name in names:
                tpu_sweeps.copy(self.planes(self.index), self.ref[name], self.ref[f"kept_{name}"], first)

    def again(self, name: str, index: tpu_sweeps.Index) -> jax.Array:
        """A strip of a block in the second phase, in float32."""
        if self.tile.mode != "kept":
            return wide(self.ref[name], index)
        plane, rows, lanes = index
        return wide(self.ref[f"kept_{name}"], (self.index * self.tile.block + plane, rows, lanes))

    def parameter(self, name: str) -> jax.Array | None:
        """A vector in float32."""
        return self.ref[name][...].astype(F32) if name in self.ref else None

    def group_sums(self, vector: jax.Array) -> jax.Array:
        """Sums over the channels of the group, for every channel."""
        return tpu_sweeps.group_sums(vector, self.groups, self.tile.axis)

    def part(self, vector: jax.Array, index: tpu_sweeps.Index) -> jax.Array:
        """The channels of a strip."""
        return tpu_sweeps.part(vector, index, self.tile.axis)

    def sums(self, count: int, terms: Callable[[tpu_sweeps.Index], tuple[jax.Array, ...]]) -> list[jax.Array]:
        """Sums of terms over the space of the block, a vector each."""
        return tpu_sweeps.sums(self.planes(self.index), self.ref["x"], self.tile.axis, count, terms)

    def write(self, name: str, value: Callable[[tpu_sweeps.Index], jax.Array]) -> None:
        """Writes a block in the second phase."""
        tpu_sweeps.write(self.planes(self.tile.second(self.index)), self.ref[name], self.tile.axis, value)

    def add_to(self, accumulator, vector: jax.Array) -> None:
        """Adds once a sample, from zero at the first."""

        @pl.when(self.index == 0)
        def _():
            accumulator[...] = vector + jnp.where(self.sample == 0, 0.0, accumulator[...])

    def statistic(self, name: str) -> jax.Array:
        """A saved statistic as a vector."""
        return tpu_sweeps.to_channels(self.ref[name][...], self.tile.channels, self.tile.axis)
