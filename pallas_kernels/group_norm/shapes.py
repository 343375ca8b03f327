"""Named shapes of the group norms: what tests, tuning and benchmarks run on."""

from typing import NamedTuple


class Shape(NamedTuple):
    """An input (batch, *space, channels): its shape, dtype and groups. Parameters have the shape of the last axis."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    num_groups: int = 32
    axis: int = -1


SHAPES = {
    "16x64x64x320_g32_bf16": Shape((16, 64, 64, 320)),
    "16x64x64x320_g32_f32": Shape((16, 64, 64, 320), "float32"),
    "64x56x56x256_g32_bf16": Shape((64, 56, 56, 256)),
    "8x128x128x128_g32_bf16": Shape((8, 128, 128, 128)),
    "8x128x128x128_g32_f32": Shape((8, 128, 128, 128), "float32"),
    "32x32x32x512_g32_bf16": Shape((32, 32, 32, 512)),
    # Each channel its own group.
    "8x256x256x64_g64_bf16": Shape((8, 256, 256, 64), "bfloat16", 64),
    "2x7x9x24_g3_f32": Shape((2, 7, 9, 24), "float32", 3),
}

# For the interpreter: every edge of planes, strips, tiles and groups, and of the array itself. Every second one is an
# edge of the TPU kernels.
SMALL = {
    "one_number": Shape((1, 1), "float32", 1),
    "no_space": Shape((3, 10), "float32", 2),
    "no_space_one_sample": Shape((1, 130), "bfloat16", 13),
    "one_pixel": Shape((2, 1, 1, 6), "float32", 3),
    "one_channel": Shape((2, 5, 1), "float32", 1),
    "one_group": Shape((3, 4, 4, 12), "float32", 1),
    "instances": Shape((2, 8, 8, 5), "float32", 5),
    "wide_instances": Shape((1, 3, 3, 200), "bfloat16", 200),
    "sequence": Shape((2, 17, 20), "float32", 4),
    "few_channels": Shape((2, 3, 130, 5), "float32", 5),
    "bf16_register": Shape((2, 2, 16, 32), "bfloat16", 8),
    "sequence_above_a_strip": Shape((1, 75, 8), "float32", 2),
    "a_register_of_channels": Shape((1, 4, 4, 128), "float32", 32),
    "odd": Shape((2, 7, 9, 24), "float32", 3),
    "large_batch": Shape((9, 3, 3, 8), "bfloat16", 2),
    "odd_groups": Shape((1, 3, 5, 21), "float32", 7),
    "many_planes": Shape((1, 37, 3, 4), "float32", 2),
    "many_dimensions": Shape((2, 2, 1, 3, 2, 4), "float32", 2),
    "volume": Shape((2, 3, 4, 5, 6), "float32", 2),
    "strips_of_channels": Shape((1, 2, 8, 320), "bfloat16", 32),
    "odd_bf16": Shape((2, 7, 9, 24), "bfloat16", 3),
    "rows_above_bf16_register": Shape((1, 3, 18, 16), "bfloat16", 4),
    "narrow_register_bf16": Shape((1, 3, 8, 12), "bfloat16", 3),
    "above_a_register_of_channels": Shape((2, 2, 8, 129), "float32", 3),
    "sequence_of_whole_registers": Shape((2, 64, 16), "bfloat16", 4),
    "tiles_of_channels": Shape((2, 2, 8, 384), "float32", 6),
    "width_of_a_register": Shape((1, 3, 8, 12), "float32", 3),
    "many_rows": Shape((1, 18, 48, 4), "bfloat16", 2),
}
