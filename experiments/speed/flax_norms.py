"""Flax's own layers as functions of an input and parameters, for a comparison in the same process."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import normjax as nj
from experiments.speed import plain
from experiments.speed.entry import Entry

# A row norm's batch, a large one in bfloat16, and an image's.
SHAPES: tuple[tuple[tuple[int, ...], Any], ...] = (
    ((8192, 1024), jnp.float32),
    ((4096, 4096), jnp.bfloat16),
    ((64, 56, 56, 64), jnp.float32),
)
GROUPS = 32


def entries() -> list[Entry]:
    """Layer, RMS, batch and group normalization at every shape, with Flax's layer and the plain formula beside."""
    return [
        Entry(name, norm, shape, dtype, formula, flax=_flax(layer, dtype))
        for shape, dtype in SHAPES
        for name, norm, formula, layer in (
            ("layer_norm", nj.layer_norm(), plain.layer_norm, nn.LayerNorm),
            ("rms_norm", nj.rms_norm(), plain.rms_norm, nn.RMSNorm),
            ("batch_norm", nj.batch_norm(), plain.batch_norm, nn.BatchNorm),
            ("group_norm", nj.group_norm(num_groups=GROUPS), plain.group_norm, nn.GroupNorm),
        )
    ]


def _flax(layer: Callable[..., nn.Module], dtype: Any) -> Callable[..., jax.Array]:
    # Flax's output would be float32 for a bfloat16 input; the same bytes have to be written for a fair comparison.
    options = {"use_running_average": False} if layer is nn.BatchNorm else {}
    module = layer(dtype=dtype, **options)

    def apply(params: Any, state: Any, x: jax.Array) -> jax.Array:
        y, _ = module.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])
        return y

    return apply
