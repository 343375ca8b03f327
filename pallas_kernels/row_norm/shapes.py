"""Named shapes of the row norms: what tests, tuning and benchmarks run on."""

from typing import NamedTuple


class Shape(NamedTuple):
    """An input: its shape, dtype and normalized axis or axes."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    axis: int | tuple[int, ...] = -1


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

# For the interpreter: every edge of groups, blocks, strips and tiles, and of the array itself.
SMALL = {
    "one_number": Shape((1, 1), "float32"),
    "one_row": Shape((1, 128), "float32"),
    "one_axis": Shape((5,), "float32", 0),
    "two_features": Shape((200, 2), "float32"),
    "below_a_register": Shape((2, 127), "float32"),
    "above_a_register": Shape((3, 129), "float32"),
    "odd_width": Shape((7, 641), "float32"),
    "one_register": Shape((8, 128), "float32"),
    "rows_above_a_register": Shape((9, 8), "float32"),
    "rows_below_bf16_register": Shape((15, 16)),
    "bf16_register": Shape((16, 256)),
    "rows_above_bf16_register": Shape((17, 100)),
    "odd_rows_and_width": Shape((33, 255)),
    "one_group": Shape((64, 32), "float32"),
    "rows_above_a_group": Shape((65, 96), "float32"),
    "partial_block": Shape((100, 100)),
    "two_blocks": Shape((600, 8), "float32"),
    "three_strips": Shape((2, 300), "float32"),
    "many_axes": Shape((2, 3, 4, 20), "float32"),
    "first_axis": Shape((6, 7), "float32", 0),
    "middle_axis": Shape((3, 5, 4), "float32", 1),
    "columns_above_the_lanes": Shape((2, 16, 130), "bfloat16", 1),
    "two_axes": Shape((2, 3, 4, 5), "float32", (1, 2)),
    "feature_map": Shape((2, 64, 49), "float32", 1),
    "many_columns": Shape((2, 4, 600), "float32", 1),
    "column_strips": Shape((1, 200, 2), "float32", 1),
    "no_rows_but_axes": Shape((4, 6), "bfloat16", (0, 1)),
}
