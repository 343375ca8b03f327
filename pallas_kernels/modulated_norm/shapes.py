"""Named shapes of modulated norms."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Samples(NamedTuple):
    """Samples, tokens of each, features of those."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arguments; scale and shift come from a linear layer in the dtype of x."""
        parameter = jax.ShapeDtypeStruct((self.shape[0], self.shape[-1]), jnp.dtype(self.dtype))
        return {"x": jax.ShapeDtypeStruct(self.shape, jnp.dtype(self.dtype)), "shift": parameter, "scale": parameter}

    def call(self, function: Callable, implementation: str | None) -> Callable:
        """The function of those arrays."""
        return lambda *arrays: function(*arrays, implementation=implementation)


SHAPES = {
    # DiT-XL/2 on images of 256 and 512 pixels; a larger model of fewer samples.
    "256x256x1152_bf16": Samples((256, 256, 1152)),
    "64x1024x1152_bf16": Samples((64, 1024, 1152)),
    "8x4096x3072_bf16": Samples((8, 4096, 3072)),
    "64x1024x1152_f32": Samples((64, 1024, 1152), "float32"),
}

# For the interpreter: tokens below, at and above a group and a block, of several samples.
SMALL = {
    "one_number": Samples((1, 1, 1), "float32"),
    "one_token": Samples((3, 130), "float32"),
    "a_token_each": Samples((5, 1, 12), "float32"),
    "few_tokens": Samples((2, 7, 128), "float32"),
    "bf16_register": Samples((2, 16, 256)),
    "odd": Samples((3, 33, 255)),
    "above_a_group": Samples((2, 65, 20), "float32"),
    "two_dimensions_of_tokens": Samples((2, 3, 5, 64), "float32"),
    "partial_block": Samples((2, 600, 8)),
    "one_sample": Samples((1, 100, 100)),
    "one_feature": Samples((4, 3, 1), "float32"),
    "two_features": Samples((2, 100, 2), "float32"),
    "one_register": Samples((1, 8, 128), "float32"),
    "above_a_register": Samples((2, 9, 129), "float32"),
    "below_a_register": Samples((3, 5, 127)),
    "one_group": Samples((1, 64, 32), "float32"),
    "a_group_each": Samples((3, 64, 16)),
    "tokens_above_bf16_register": Samples((2, 17, 100)),
    "tokens_below_bf16_register": Samples((2, 15, 16)),
    "three_strips": Samples((2, 2, 300), "float32"),
    "many_samples": Samples((33, 2, 8), "float32"),
    "three_dimensions_of_tokens": Samples((2, 2, 3, 2, 12), "float32"),
    "one_bf16_token": Samples((4, 24)),
    "two_blocks": Samples((1, 600, 8), "float32"),
    "odd_width": Samples((1, 3, 641), "float32"),
}
