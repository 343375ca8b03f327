"""Block sizes for Mosaic TPU: what fits into VMEM on every chip at its default limit."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._strips import LANES

# The default limit is 16 MiB on v4, v5e and v5p; Mosaic's own scratch needs some of it.
BUDGET = 11 * 2**20
# Beyond the default the limit is raised, up to what v5p and tpu7x (64 MiB) have to spare.
LIMIT = 48 * 2**20
LARGEST = 512
Semantics = Literal["parallel", "arbitrary"]


class Blocks(NamedTuple):
    """Rows (or columns) per block and per group, and the VMEM limit where the default is too small."""

    block: int
    group: int
    vmem_limit_bytes: int | None

    def params(self, semantics: tuple[Semantics, ...]) -> pltpu.CompilerParams:
        """Compiler parameters; "parallel" only where no block is written twice."""
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=self.vmem_limit_bytes)


def sublanes(dtype: jax.typing.DTypeLike) -> int:
    """Rows of a register tile: 8 of 32 bits, 16 of 16 bits."""
    return 8 * 4 // jnp.dtype(dtype).itemsize


def group_of_rows(features: int, dtypes: tuple) -> int:
    """Rows per group: not by the number of rows, so that a row has the same bits in any batch.

    Both passes must agree, because the statistics are laid out by groups.
    """
    smallest = max(map(sublanes, dtypes))
    fits = BUDGET // (2 * 4 * max(jnp.dtype(d).itemsize for d in dtypes) * features)
    group = 64
    while group > max(fits, smallest):
        group //= 2
    return group


def row_blocks(rows: int, features: int, group: int, dtypes: tuple, fixed: int, block: int | None = None) -> Blocks:
    """Blocks of (rows, features).

    Args:
      rows, features: Of the array.
      group: Rows per group.
      dtypes: One per blocked operand and result.
      fixed: Bytes per feature that do not grow with the rows: parameters and accumulators.
      block: Rows per block, if not the default.
    """
    width = -(-features // LANES) * LANES
    each = 2 * width * sum(jnp.dtype(d).itemsize for d in dtypes)
    if block is None:
        fits = max(group, min(LARGEST, (BUDGET - 2 * fixed * width) // each) // group * group)
        block = min(fits, -(-rows // group) * group)
        # A divisor of the rows needs no mask; up to half the block is given for that.
        divisors = (b for b in range(block, block // 2, -group) if rows % b == 0)
        block = next(divisors, block)
    return Blocks(block, group, _limit(block * each + 2 * fixed * width, features, dtypes))


def column_blocks(features: int, columns: int, dtypes: tuple, fixed: int, block: int | None = None) -> Blocks:
    """Blocks of (features, columns); `fixed` counts bytes per feature."""
    height = -(-features // 16) * 16
    each = 2 * height * sum(jnp.dtype(d).itemsize for d in dtypes)
    if block is None:
        block = LANES
        while block < min(columns, LARGEST) and 2 * block * each + 2 * fixed * height <= BUDGET:
            block *= 2
    return Blocks(block, LANES, _limit(block * each + 2 * fixed * height, features, dtypes))


def _limit(needed: int, features: int, dtypes: tuple) -> int | None:
    if needed > LIMIT:
        raise NotImplementedError(
            f"implementation='mosaic_tpu' keeps whole rows in VMEM: {features} features of {dtypes[0]} need "
            f"{needed / 2**20:.0f} MiB, at most {LIMIT / 2**20:.0f} are used; use implementation='xla'."
        )
    return None if needed <= BUDGET + 2**20 else needed + 4 * 2**20
