"""How a TPU kernel cuts an array (samples, rows, features) whose parameters are each sample's own."""

import dataclasses

import jax
from jax.experimental import pallas as pl

from pallas_kernels import _tpu_tiling
from pallas_kernels._tpu_tiling import Tiling


@dataclasses.dataclass(frozen=True)
class Samples(Tiling):
    """Blocks of the rows of one sample: `before` counts those, and no block crosses from one sample to the next."""

    samples: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks of each sample."""
        return self.samples, pl.cdiv(self.before, self.blocks.block)

    def tensor(self, array: jax.Array) -> jax.Array:
        """An array of x's shape as the kernel sees it."""
        return array.reshape(self.samples, self.before, self.features)

    @property
    def tensor_spec(self) -> pl.BlockSpec:
        """A block of whole rows."""
        return pl.BlockSpec((None, self.blocks.block, self.features), lambda i, j: (i, j, 0))

    def parameter(self, array: jax.Array) -> jax.Array:
        """A parameter of which a sample's part broadcasts to a block."""
        return array.reshape(self.samples, 1, self.features)

    @property
    def parameter_spec(self) -> pl.BlockSpec:
        """The sample's part."""
        return pl.BlockSpec((None, 1, self.features), lambda i, j: (i, 0, 0))

    @property
    def statistic_shape(self) -> tuple[int, ...]:
        """Groups of rows along the lanes, by sample."""
        return (self.samples, pl.cdiv(self.before, self.blocks.group), 1, self.blocks.group)

    @property
    def statistic_spec(self) -> pl.BlockSpec:
        """The statistics of a block's rows."""
        return pl.BlockSpec((None, self.strips.groups, 1, self.blocks.group), lambda i, j: (i, j, 0, 0))

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """A parameter's gradient, summed over sublanes: eight rows for each sample would be read and written."""
        return (self.samples, 1, self.features)

    @property
    def sums_spec(self) -> pl.BlockSpec:
        """The sample's part, while its blocks pass."""
        return self.parameter_spec


def tiling(
    samples: int, shape: tuple[int, int, int], group: int, dtypes: tuple, fixed: int, block: int | None
) -> Samples:
    """The tiling of so many samples for these blocked operands."""
    before, features, after = shape
    one = _tpu_tiling.tiling((before // samples, features, after), group, dtypes, fixed, block)
    return Samples(one.before, features, after, one.strips, one.blocks, samples)
