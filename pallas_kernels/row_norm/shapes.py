"""Named shapes of the row norms: what tests, tuning and benchmarks run on."""

from typing import NamedTuple


class Shape(NamedTuple):
    """An input: its shape, dtype and normalized axis."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    axis: int = -1


SHAPES = {
    "8192x4096_bf16": Shape((8192, 4096)),
    "16384x8192_bf16": Shape((16384, 8192)),
    "65536x768_bf16": Shape((65536, 768)),
    "8192x4096_f32": Shape((8192, 4096), "float32"),
    "1000x100_f32": Shape((1000, 100), "float32"),
    "7x1537_f32": Shape((7, 1537), "float32"),
    # A feature map with its channels in front: the axis is not the last.
    "16x256x1024_bf16_channels_first": Shape((16, 256, 1024), "bfloat16", 1),
}
