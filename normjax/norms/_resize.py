"""Nearest resizing of masks and label maps by the rule that the published models were trained with."""

import jax
import jax.numpy as jnp
import numpy as np


def nearest_resize(image: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """Resizes `axes` of `image` to `shape`: position i of `size` reads floor(i * length / size).

    `jax.image.resize` reads floor((i + 0.5) * length / size) instead: shrinking by two, it takes the odd positions
    where torch's `interpolate(mode="nearest")` takes the even ones. torch forms the quotient in float32, which lands
    one lower for a few pairs of sizes, such as 26 to 22; integers do not.
    """
    for axis, size in zip(axes, shape, strict=True):
        length = image.shape[axis]
        if length != size:
            image = jnp.take(image, np.arange(size) * length // size, axis=axis)
    return image
