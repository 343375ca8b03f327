"""The plainest correct formulas of norms of images with a condition at each position, and of divisive ones."""

import math

import jax
import jax.numpy as jnp

from experiments.speed.plain import Tree, batch_axes, space_axes, standardized, wide


def convolved(x: jax.Array, layer: Tree) -> jax.Array:
    """A convolution with zero padding that keeps the size."""
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"] if "bias" in layer else y


def in_regions(x: jax.Array, region: jax.Array) -> jax.Array:
    """Each region by its own statistics over the batch; the share of a region multiplies epsilon."""

    def part(inside):
        inside = inside.astype(x.dtype)
        count = jnp.maximum(jnp.sum(inside), 1)
        centred = x - jnp.sum(inside * x, batch_axes(x)) / count
        var = jnp.sum(inside * jnp.square(centred), batch_axes(x)) / count
        return centred * jax.lax.rsqrt(var + 1e-5 * inside.size / count)

    return jnp.where(region, part(region), part(~region))


def region_norm(params: Tree, state: Tree, x: jax.Array, region: jax.Array) -> jax.Array:
    """RN-B; the background is the first row of the parameters."""
    scale = jnp.where(region, params["scale"][1], params["scale"][0])
    return in_regions(wide(x), region) * (1 + scale) + params["bias"].sum(0)


def learned_region_norm(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """RN-L."""
    pooled = jnp.concatenate([jnp.mean(x, -1, keepdims=True), jnp.max(x, -1, keepdims=True)], -1)
    map_ = jax.nn.sigmoid(convolved(pooled, params["mask"]))
    y = in_regions(wide(x), map_ >= 0.8)
    return y * (1 + convolved(map_, params["scale"])) + convolved(map_, params["bias"])


def spade(params: Tree, state: Tree, x: jax.Array, segmentation: jax.Array) -> jax.Array:
    """SPADE around instance normalization; the label map has the input's size."""
    hidden = jax.nn.relu(convolved(segmentation, params["hidden"]))
    y = standardized(wide(x), space_axes(x), 1e-6)
    return y * (1 + convolved(hidden, params["scale"])) + convolved(hidden, params["bias"])


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = space_axes(x)
    return jnp.mean(wide(x), axes, keepdims=True), jnp.var(wide(x), axes, keepdims=True, ddof=1)


def adain(params: Tree, state: Tree, x: jax.Array, style: jax.Array) -> jax.Array:
    """AdaIN."""
    mean, var = _statistics(x)
    style_mean, style_var = _statistics(style)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * jnp.sqrt(style_var + 1e-5) + style_mean


def content_aware_adain(params: Tree, state: Tree, x: jax.Array, style: jax.Array) -> jax.Array:
    """Content-aware AdaIN."""
    (mean, var), (style_mean, style_var) = _statistics(x), _statistics(style)
    deviation = jnp.sqrt(var)
    target = 0.6 * jnp.sqrt(style_var) + 0.4 * deviation
    return (x - mean) / (deviation + 1e-4) * target + 0.6 * style_mean + 0.4 * mean


def gdwct(params: Tree, state: Tree, x: jax.Array, style: jax.Array, groups: int = 8) -> jax.Array:
    """Group-wise colouring."""

    def perceptron(layers: Tree, v: jax.Array) -> jax.Array:
        for i in range(len(layers)):
            v = (v if i == 0 else jax.nn.leaky_relu(v)) @ layers[str(i)]["kernel"] + layers[str(i)]["bias"]
        return v

    size = x.shape[-1] // groups
    matrix = perceptron(params["coloring"], style.reshape(-1, groups, size)).reshape(-1, groups, size, size)
    basis = matrix / jnp.sqrt(jnp.sum(jnp.square(matrix), -2, keepdims=True))
    centred = (x - jnp.mean(x, batch_axes(x))).reshape(x.shape[0], -1, groups, size)
    colored = jnp.einsum("bgij,bgkj,bpgk->bpgi", matrix, basis, centred).reshape(x.shape)
    shift = perceptron(params["shift"], style)[:, None, None]
    return params["alpha"] * (colored + shift) + (1 - params["alpha"]) * x


def coordinate_modulation(params: Tree, state: Tree, x: jax.Array, coordinates: jax.Array) -> jax.Array:
    """CAM for images: bilinear grids, layer normalization."""

    def read(grid: jax.Array) -> jax.Array:
        places = jnp.moveaxis(coordinates, -1, 0) * (jnp.asarray(grid.shape)[:, None] - 1.0)
        return jax.scipy.ndimage.map_coordinates(grid, list(places), order=1, mode="nearest")[:, None]

    return standardized(wide(x), -1, 1e-5) * read(params["scale"]) + read(params["bias"])


def self_modulation(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """SAL."""
    hidden = jax.nn.gelu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], approximate=False)
    scale, shift = jnp.split(hidden @ params["out"]["kernel"] + params["out"]["bias"], 2, -1)
    return x * (1 + scale) + shift


def gdn(params: Tree, state: Tree, x: jax.Array) -> jax.Array:
    """GDN with bounded parameters."""
    offset = 2.0**-36
    beta = jnp.square(jnp.maximum(params["beta"], math.sqrt(1e-6 + offset))) - offset
    gamma = jnp.square(jnp.maximum(params["gamma"], math.sqrt(offset))) - offset
    return x * jax.lax.rsqrt(jnp.square(x) @ gamma.T + beta)
