"""Every method of the catalogue at one size, with its plainest formula."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from experiments.speed import plain, plain_tokens, plain_vision, plain_weights
from experiments.speed.entry import Entry
from normjax._method import methods

# About 8 MiB each: larger than the caches, small enough for sixty methods.
TOKENS, IMAGES = (16, 256, 512), (16, 28, 28, 128)
INEXACT = ("unified_norm", "power_norm")


def entries(tokens: tuple[int, int, int] = TOKENS, images: tuple[int, int, int, int] = IMAGES) -> list[Entry]:
    """One entry a method.

    Args:
      tokens: Shape of the inputs of token norms.
      images: Shape of the inputs of the others; the channels must be a multiple of 64. A kernel has twice and four
        times as many.

    Returns:
      The entries, in the order of the printed table of methods.
    """
    rng = np.random.default_rng(1)
    batch, length, features = tokens
    channels = images[-1]

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def uniform(*shape: int) -> jax.Array:
        return jnp.asarray(rng.random(shape), jnp.float32)

    image_norm = nj.instance_norm(use_scale=False, use_bias=False)
    coordinates = nj.layer_norm(epsilon=1e-5, use_scale=False, use_bias=False)
    flat = (batch * length, features)
    heads = (batch, 8, length, features // 8)
    kernel = (3, 3, 2 * channels, 4 * channels)
    special: dict[str, tuple[nj.NormTransform, tuple[int, ...], dict[str, Any]]] = {
        "adaptive_balance_norm": (nj.adaptive_balance_norm(num_tasks=4), images, {"task": _tasks(images[0])}),
        "estimated_batch_norm": (nj.estimated_batch_norm(moving_speed=0.1), images, {}),
        "batch_renorm": (nj.batch_renorm(r_max=3.0, d_max=5.0), images, {}),
        "continual_norm": (nj.continual_norm(num_groups=32), images, {}),
        "batch_channel_norm": (nj.batch_channel_norm(num_groups=32), images, {}),
        "instance_batch_norm": (nj.instance_batch_norm(), images, {}),
        "rep_batch_norm": (nj.rep_batch_norm(), tokens, {}),
        "prep_batch_norm": (nj.prep_batch_norm(), tokens, {}),
        "gated_rms_norm": (nj.gated_rms_norm(gate_first=True), tokens, {"gate": normal(*tokens)}),
        "partial_rms_norm": (nj.partial_rms_norm(), tokens, {}),
        "attention_temperature": (nj.attention_temperature(head_axis=1), heads, {}),
        "ssmax": (nj.ssmax(head_axis=1), heads, {"visible": jnp.arange(1, length + 1, dtype=jnp.int32)[:, None]}),
        "ngpt_interpolation": (nj.ngpt_interpolation(), tokens, {"update": normal(*tokens)}),
        "point_norm": (nj.point_norm(nj.point_functions.arctan), tokens, {}),
        "time_dependent_layer_norm": (nj.time_dependent_layer_norm(), tokens, {"time": uniform(batch)}),
        "time_dependent_rms_norm": (nj.time_dependent_rms_norm(), tokens, {"time": uniform(batch)}),
        "ada_layer_norm": (nj.ada_layer_norm(), tokens, {"condition": normal(batch, 64)}),
        "ada_rms_norm": (nj.ada_rms_norm(), tokens, {"condition": normal(batch, 64)}),
        "ada_time_depth_norm": (
            nj.ada_time_depth_norm(),
            tokens,
            {"time": uniform(batch), "depth": jnp.asarray(3, jnp.int32)},
        ),
        "region_norm": (nj.region_norm(), images, {"region": uniform(*images[:-1], 1) > 0.5}),
        "learned_region_norm": (nj.learned_region_norm(), images, {}),
        "spade": (nj.spade(image_norm, hidden=16), images, {"segmentation": normal(*images[:-1], 4)}),
        "adain": (nj.adain(), images, {"style": normal(*images)}),
        "content_aware_adain": (nj.content_aware_adain(), images, {"style": normal(*images)}),
        "gdwct": (nj.gdwct(hidden=32), images, {"style": normal(images[0], channels)}),
        "coordinate_modulation": (
            nj.coordinate_modulation(coordinates, (32, 32)),
            flat,
            {"coordinates": uniform(flat[0], 2)},
        ),
        "self_modulation": (nj.self_modulation(), images, {}),
        # Above its lower bound, where the gradient is the maximum's, and not equal to its transpose.
        "gdn": (nj.gdn(gamma_init=jax.nn.initializers.uniform(0.1)), images, {}),
        "qk_norm": (nj.qk_norm(nj.rms_norm()), heads, {}),
        "mask_carrying_norm": (nj.mask_carrying_norm(), images, {"mask": uniform(*images[:-1], 1) > 0.3}),
    }
    result = []
    for name, method in methods(vars(nj)).items():
        usual = {"batch": images, "vision": images, "weight": kernel}.get(method.family, tokens)
        norm, shape, context = special.get(name) or (getattr(nj, name)(), usual, {})
        exact, arrays = name not in INEXACT, 2 if name == "qk_norm" else 1
        result.append(Entry(name, norm, shape, jnp.float32, _formula(name), context, exact=exact, arrays=arrays))
    return result


def _tasks(samples: int) -> jax.Array:
    return jnp.arange(samples, dtype=jnp.int32) % 4


def _formula(name: str) -> Callable[..., jax.Array]:
    for module in (plain, plain_tokens, plain_vision, plain_weights):
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(f"{name} has no plain formula in experiments.speed; write the five lines that a user would.")
