"""The plainest correct formulas of norms of single tokens, of point functions, and of norms with a vector condition."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.plain import Tree, affine, scaled, standardized, wide


def unit(x: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """The vector over its length, which is at least epsilon."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True)), epsilon)


def l2_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """L2 normalization with torch's clamp."""
    return unit(wide(x), 1e-12).astype(x.dtype)


def scale_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """ScaleNorm."""
    return (params["scale"] * unit(wide(x), 1e-5)).astype(x.dtype)


def crms_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """RMS of the vector whose last entry is minus the sum of the others."""
    square = jnp.sum(jnp.square(wide(x)), -1, keepdims=True) + jnp.square(jnp.sum(wide(x), -1, keepdims=True))
    return (wide(x) * jax.lax.rsqrt(square / (x.shape[-1] + 1) + 1e-5)).astype(x.dtype)


def partial_rms_norm(params: Tree, state: Tree, x: jax.Array, share: float = 0.0625) -> jax.Array:
    """PRMSNorm of the first sixteenth of the features, epsilon outside the root."""
    part = wide(x[..., : int(x.shape[-1] * share)])
    root = jnp.sqrt(jnp.mean(jnp.square(part), -1, keepdims=True))
    return affine(params, wide(x) / (root + 1e-8), x.dtype)


def gated_rms_norm(params: Tree, state: Tree, x: jax.Array, gate: jax.Array) -> jax.Array:
    """Mamba 2: the gate before the norm."""
    return affine(params, scaled(wide(x) * jax.nn.silu(wide(gate)), -1, 1e-6), x.dtype)


def qk_norm(params: Tree, state: Tree, x: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """RMS normalization of queries and of keys."""
    named = zip(("query", "key"), x, strict=True)
    return tuple(affine(params[name], scaled(wide(v), -1, 1e-6), v.dtype) for name, v in named)


def input_scaled_rms_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """The scale before the statistic."""
    return scaled(wide(x) * (1 + params["scale"]), -1, 1e-6).astype(x.dtype)


def attention_temperature(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Scores times the heads' learned temperature, at most 100."""
    temperature = jnp.exp(jnp.minimum(params["log_temperature"], math.log(100.0)))
    return x * temperature[:, None, None]


def ssmax(params: Tree, state: Tree, x: jax.Array, visible: jax.Array) -> jax.Array:
    """Queries times the heads' scale and the logarithm of the number of visible keys."""
    return x * params["scale"][:, None, None] * jnp.log(visible.astype(x.dtype))


def ngpt_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """NGPT's queries and keys."""
    return unit(wide(x)) * (params["scale"] * math.sqrt(x.shape[-1]))


def ngpt_interpolation(params: Tree, state: Tree, x: jax.Array, update: jax.Array) -> jax.Array:
    """NGPT's residual."""
    rate = jnp.abs(params["alpha"] * (0.05 * math.sqrt(x.shape[-1])))
    return unit(unit(x) + rate * (unit(update) - unit(x)))


def dyt(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """DyT."""
    return affine(params, jnp.tanh(params["alpha"] * wide(x)), x.dtype)


def derf(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """Derf."""
    return affine(params, jax.lax.erf(params["alpha"] * wide(x) + params["shift"]), x.dtype)


def point_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """The arcus tangens among the point functions."""
    return affine(params, jnp.arctan(params["alpha"] * wide(x) + params["shift"]) * (2 / math.pi), x.dtype)


def layer_scale(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """LayerScale."""
    return params["scale"] * x


def at_time(parameter: Tree, time: jax.Array) -> jax.Array:
    """DiMR's parameter at each time."""
    weight = jax.nn.sigmoid((parameter["u"] + 1) * time[:, None] + parameter["b"])
    return (parameter["p1"] + weight * (parameter["p0"] - parameter["p1"]))[:, None, :]


def time_dependent_layer_norm(params: Tree, state: Tree, x: jax.Array, time: jax.Array) -> jax.Array:
    """TD-LN."""
    y = standardized(wide(x), -1, 1e-5)
    return (y * at_time(params["scale"], time / 4) + at_time(params["bias"], time / 4)).astype(x.dtype)


def time_dependent_rms_norm(params: Tree, state: Tree, x: jax.Array, time: jax.Array) -> jax.Array:
    """TD-RMS."""
    root = jnp.sqrt(jnp.mean(jnp.square(wide(x)), -1, keepdims=True))
    return (wide(x) / (root + 1e-8) * at_time(params["scale"], time / 4)).astype(x.dtype)


def ada_layer_norm(params: Tree, state: Tree, x: jax.Array, condition: jax.Array) -> jax.Array:
    """AdaLN."""
    shift, scale = jnp.split(jax.nn.silu(condition) @ params["kernel"] + params["bias"], 2, -1)
    return standardized(wide(x), -1, 1e-6) * (1 + scale[:, None]) + shift[:, None]


def ada_rms_norm(params: Tree, state: Tree, x: jax.Array, condition: jax.Array) -> jax.Array:
    """k-diffusion's AdaRMSNorm."""
    return scaled(wide(x), -1, 1e-6) * (1 + condition @ params["kernel"])[:, None]


def sinusoidal(values: jax.Array, features: int = 256) -> jax.Array:
    """Cosines first."""
    half = features // 2
    angles = values[..., None] * np.exp(-math.log(1e4) * np.arange(half) / half).astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def ada_time_depth_norm(params: Tree, state: Tree, x: jax.Array, time: jax.Array, depth: jax.Array) -> jax.Array:
    """LucidFlux's norm on time and depth."""

    def embed(layers: Tree, values: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(sinusoidal(values) @ layers["hidden"]["kernel"] + layers["hidden"]["bias"])
        return hidden @ layers["out"]["kernel"] + layers["out"]["bias"]

    embedded = embed(params["time"], 1000 * time) + embed(params["depth"], depth.astype(jnp.float32))
    shift, scale = jnp.split(jax.nn.silu(embedded) @ params["kernel"] + params["bias"], 2, -1)
    return standardized(wide(x), -1, 1e-6) * (1 + scale[:, None]) + shift[:, None]
