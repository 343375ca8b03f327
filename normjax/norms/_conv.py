"""The small layers with which a condition becomes a scale and a shift; channels last, any spatial rank."""

from collections.abc import Mapping
from typing import Any

import jax

from normjax.norms._affine import Initializer, default_init


def fan_in_uniform(rng: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform within 1 / sqrt(fan in): torch's initial kernels of linear and convolutional layers."""
    if rng is None:
        raise ValueError("initial kernels are random, so init needs a key; got rng=None. Pass one, or a kernel_init=.")
    return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(rng, shape, dtype)


def init_layer(
    rng: jax.Array | None,
    shape: tuple[int, ...],
    dtype: Any,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    *,
    use_bias: bool = True,
) -> dict[str, jax.Array]:
    """Creates `{"kernel", "bias"}` of a linear or convolutional layer; `shape` is (*window, inputs, outputs)."""
    rngs = (None, None) if rng is None else jax.random.split(rng)
    params = {"kernel": (kernel_init or fan_in_uniform)(rngs[0], shape, dtype)}
    if use_bias:
        params["bias"] = default_init(bias_init, 0.0)(rngs[1], shape[-1:], dtype)
    return params


def check_window(kernel_size: int) -> None:
    """Raises `ValueError` unless `kernel_size` keeps the size of what it convolves."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"expected an odd kernel_size >= 1, which keeps the size of the map; got {kernel_size}.")


def convolve(x: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
    """Convolution of (batch, *space, channels) with stride 1 and zero padding, in the dtype of `x`."""
    rank = x.ndim
    space = tuple(range(1, rank - 1))
    images = (0, rank - 1, *space)
    numbers = jax.lax.ConvDimensionNumbers(images, (rank - 1, rank - 2, *range(rank - 2)), images)
    y = jax.lax.conv_general_dilated(
        x, params["kernel"].astype(x.dtype), (1,) * len(space), "SAME", dimension_numbers=numbers
    )
    return with_bias(y, params)


def with_bias(y: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
    """Adds the layer's bias, if it has one, to the features on the last axis."""
    return y if "bias" not in params else y + params["bias"].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
