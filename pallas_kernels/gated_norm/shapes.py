"""Named shapes of gated norms: those of the row norms, and the layers of two models."""

from pallas_kernels.row_norm.shapes import SHAPES as ROWS
from pallas_kernels.row_norm.shapes import SMALL as SMALL
from pallas_kernels.row_norm.shapes import Shape as Shape

SHAPES = ROWS | {
    # Mamba 2 of 2.7 billion parameters normalizes all inner features; Qwen3-Next 32 value heads of each token.
    "8192x5120_bf16": Shape((8192, 5120)),
    "8192x32x128_bf16": Shape((8192, 32, 128)),
}
