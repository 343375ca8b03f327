"""Named shapes that tests and analysis run on: weights and the axes of one norm."""

from typing import NamedTuple


class Shape(NamedTuple):
    """A weight: its shape, dtype and the axes of one norm, `None` for all."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    axis: int | tuple[int, ...] | None = None


SHAPES = {
    "4096x4096_bf16": Shape((4096, 4096)),
    "4096x11008_f32": Shape((4096, 11008), "float32"),
    "32000x4096_bf16": Shape((32000, 4096)),
    "24x1024x4096_bf16_per_layer": Shape((24, 1024, 4096), "bfloat16", (1, 2)),
    "8192x4096_bf16": Shape((8192, 4096), "bfloat16", -1),
    "32000x4096_f32_per_row": Shape((32000, 4096), "float32", -1),
    "4096x11008_f32_per_column": Shape((4096, 11008), "float32", 0),
    "24x1024x4096_bf16_per_column": Shape((24, 1024, 4096), "bfloat16", 1),
    "3x3x256x512_f32_per_filter": Shape((3, 3, 256, 512), "float32", (0, 1, 2)),
    "7x1537_f32": Shape((7, 1537), "float32"),
}

# For the interpreter: every edge of groups, blocks, strips and tiles, and of the array itself.
SMALL = {
    "one_number": Shape((1, 1), "float32"),
    "a_vector": Shape((5,), "float32"),
    "one_row": Shape((1, 128), "float32"),
    "one_register": Shape((8, 128), "float32"),
    "odd": Shape((7, 641), "float32"),
    "rows_above_a_register": Shape((9, 8), "float32"),
    "bf16_register": Shape((16, 256)),
    "bf16_odd": Shape((33, 255)),
    "above_a_group": Shape((65, 96), "float32"),
    "partial_block": Shape((600, 8), "float32"),
    "bf16_partial_block": Shape((530, 24)),
    "layers": Shape((3, 16, 40), "float32", (1, 2)),
    "bf16_layers": Shape((2, 20, 130), "bfloat16", (1, 2)),
    "layers_of_partial_blocks": Shape((2, 520, 12), "float32", (1, 2)),
    "layers_of_heads": Shape((2, 3, 8, 20), "float32", (1, 2, 3)),
    "conv": Shape((3, 3, 8, 16), "float32"),
    "per_row": Shape((33, 100), "float32", -1),
    "per_row_one": Shape((1, 300), "float32", -1),
    "bf16_per_row": Shape((17, 129), "bfloat16", -1),
    "per_row_of_layers": Shape((2, 9, 40), "float32", -1),
    "per_row_partial_block": Shape((600, 20), "float32", -1),
    "per_column": Shape((12, 140), "float32", 0),
    "bf16_per_column": Shape((40, 30), "bfloat16", 0),
    "per_column_of_layers": Shape((2, 16, 130), "float32", 1),
    "per_filter": Shape((3, 3, 4, 20), "float32", (0, 1, 2)),
    "per_head": Shape((6, 4, 10), "float32", 1),
    "long_columns": Shape((200, 2), "float32", 0),
}
