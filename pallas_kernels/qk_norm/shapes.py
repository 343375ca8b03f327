"""Named shapes of queries and keys."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Heads(NamedTuple):
    """Queries and keys of some tokens: heads of either, features of each."""

    tokens: int
    heads: int
    key_heads: int
    features: int
    dtype: str = "bfloat16"

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the matrix products leave, and the scales."""
        like = lambda heads: jax.ShapeDtypeStruct((self.tokens, heads * self.features), jnp.dtype(self.dtype))  # noqa: E731
        scale = jax.ShapeDtypeStruct((self.features,), jnp.float32)
        return {"q": like(self.heads), "k": like(self.key_heads), "q_scale": scale, "k_scale": scale}

    def call(self, function: Callable, implementation: str | None) -> Callable:
        """The function of those arrays, and of the same as its results."""

        def flat(q, k, *scales):
            split = [a.reshape(self.tokens, -1, self.features) for a in (q, k)]
            outputs = function(*split, *scales, implementation=implementation)
            return tuple(a.reshape(self.tokens, -1) for a in outputs)

        return flat


SHAPES = {
    # A vision transformer or a small language model, Qwen3 of 8 billion parameters, Gemma 3 of 27 billion.
    "8192x32+32x64_bf16": Heads(8192, 32, 32, 64),
    "8192x32+8x128_bf16": Heads(8192, 32, 8, 128),
    "8192x32+16x256_bf16": Heads(8192, 32, 16, 256),
    "8192x32+8x128_f32": Heads(8192, 32, 8, 128, "float32"),
    # Four heads in three registers.
    "8192x32+32x96_bf16": Heads(8192, 32, 32, 96),
}

# For the interpreter: a strip of one head, of several, of some; heads of several strips; partial groups and blocks.
SMALL = {
    "one_head": Heads(1, 1, 1, 128, "float32"),
    "half_a_register": Heads(3, 1, 1, 64, "float32"),
    "a_register_and_a_half": Heads(5, 3, 1, 64, "float32"),
    "quarters": Heads(7, 5, 2, 32, "float32"),
    "two_registers": Heads(9, 2, 1, 256, "float32"),
    "three_registers": Heads(2, 2, 2, 384),
    "odd_tokens": Heads(33, 4, 2, 64),
    "four_in_three_registers": Heads(6, 9, 2, 96, "float32"),
    "eight_in_five_registers": Heads(3, 8, 3, 80),
    "above_a_group": Heads(65, 2, 1, 128, "float32"),
    "partial_block": Heads(600, 2, 2, 64),
    "plain_rows": Heads(10, 3, 2, 40, "float32"),
    "plain_wide_rows": Heads(4, 2, 1, 200),
    "few_features": Heads(6, 4, 2, 8, "float32"),
    "eight_in_a_register": Heads(4, 8, 4, 16, "float32"),
    "odd_heads_in_registers": Heads(1, 5, 3, 64, "float32"),
    "below_a_register": Heads(2, 3, 2, 32),
    "two_in_three_registers": Heads(4, 2, 2, 192, "float32"),
    "one_of_two_in_three_registers": Heads(3, 1, 1, 192),
    "some_of_eight_in_five_registers": Heads(5, 3, 1, 80, "float32"),
    "bf16_register_of_tokens": Heads(16, 1, 1, 128),
    "tokens_above_bf16_register": Heads(17, 2, 1, 128),
    "one_group": Heads(64, 1, 1, 32, "float32"),
    "plain_odd_rows": Heads(9, 3, 1, 33),
    "one_feature": Heads(7, 2, 1, 1, "float32"),
}
