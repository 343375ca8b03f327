"""The networks: layers with a normalization before every nonlinearity, as plain dicts of arrays.

A layer is its kernel: of two axes (inputs, units), or of four (height, width, channels, units) for a convolution.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import normjax as nj

READOUT = "readout"


# Of the variance of a kernel times its fan in: He's before a ReLU, and one for the readout.
_HIDDEN_GAIN, _READOUT_GAIN = 2.0, 1.0
STRIDE = 2

Nonlinearity = Callable[[jax.Array], jax.Array]


class Output(NamedTuple):
    """Logits `(n, classes)` and the activations `(n, ..., units)` after each nonlinearity."""

    logits: jax.Array
    activations: list[jax.Array]


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `init(key) -> params`.
      apply: `apply(params, x) -> Output`.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[[dict[str, Any], jax.Array], Output]


# Cached: one value for equal networks, so that functions compiled for it are shared.
@functools.cache
def network(
    shapes: tuple[tuple[int, ...], ...], norm: nj.NormTransform | None, nonlinearity: Nonlinearity = jax.nn.relu
) -> Network:
    """The network with these kernels.

    Args:
      shapes: Of the kernels, the readout's last, as for `init_layers`.
      norm: The normalization before every nonlinearity, or `None`.
      nonlinearity: After every layer but the readout.

    Returns:
      The network.
    """
    return Network(lambda key: init_layers(key, shapes, norm), lambda params, x: apply(params, norm, x, nonlinearity))


def perceptron(inputs: int, widths: Sequence[int], classes: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the kernels of a multilayer perceptron."""
    return tuple(itertools.pairwise((inputs, *widths, classes)))


def init(key: jax.Array, sizes: Sequence[int], norm: nj.NormTransform | None) -> dict[str, Any]:
    """Parameters of a multilayer perceptron, as `init_layers`.

    Args:
      key: Random key.
      sizes: Inputs, hidden widths, classes.
      norm: The normalization before every nonlinearity, or `None`.

    Returns:
      The parameters, float32.
    """
    return init_layers(key, tuple(itertools.pairwise(sizes)), norm)


def init_layers(key: jax.Array, shapes: Sequence[tuple[int, ...]], norm: nj.NormTransform | None) -> dict[str, Any]:
    """Parameters `{"hidden_0": {"kernel"}, "norm_0": {"scale", "bias"}, ..., "readout": {"kernel", "bias"}}`.

    Hidden kernels have He's initial scale, the readout 1/sqrt(fan in). A layer that feeds a norm has no bias of its
    own, for the norm would remove it; without a norm it has one.

    Args:
      key: Random key.
      shapes: Of the kernels `(..., inputs, units)`, the readout's last.
      norm: The normalization before every nonlinearity, or `None`.

    Returns:
      The parameters, float32.
    """
    keys = jax.random.split(key, len(shapes))
    params: dict[str, Any] = {}
    for i, shape in enumerate(shapes[:-1]):
        kernel = _gaussian(keys[i], shape, _HIDDEN_GAIN)
        if norm is None:
            params[f"hidden_{i}"] = {"kernel": kernel, "bias": jnp.zeros(shape[-1], jnp.float32)}
        else:
            params[f"hidden_{i}"] = {"kernel": kernel}
            activations = jax.ShapeDtypeStruct((*(1 for _ in shape[:-1]), shape[-1]), jnp.float32)
            params[f"norm_{i}"], _ = norm.init(None, activations)
    kernel = _gaussian(keys[-1], shapes[-1], _READOUT_GAIN)
    params[READOUT] = {"kernel": kernel, "bias": jnp.zeros(shapes[-1][-1], jnp.float32)}
    return params


def fresh_leaf(key: jax.Array, path: str, leaf: jax.Array) -> jax.Array:
    """A new draw of a parameter, as `init_layers` makes it; `path` is `"hidden_0/kernel"` and the like."""
    layer, _, name = path.partition("/")
    if name == "kernel":
        return _gaussian(key, leaf.shape, _READOUT_GAIN if layer == READOUT else _HIDDEN_GAIN)
    return jnp.full(leaf.shape, 1.0 if name == "scale" else 0.0, jnp.float32)


def apply(
    params: dict[str, Any], norm: nj.NormTransform | None, x: jax.Array, nonlinearity: Nonlinearity = jax.nn.relu
) -> Output:
    """Maps inputs `(n, features)`, or images `(n, h, w, channels)` where the first layer is a convolution."""
    activations = []
    for i in range(sum(name.startswith("hidden_") for name in params)):
        layer = params[f"hidden_{i}"]
        x = _linear(x, layer["kernel"])
        if norm is None:
            x = x + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        else:
            x, _ = norm.apply(params[f"norm_{i}"], {}, x, train=True)
        x = nonlinearity(x)
        activations.append(x)
    return Output(_linear(x, params[READOUT]["kernel"]) + params[READOUT]["bias"][None, :], activations)


def _linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if kernel.ndim == 2:
        return x.reshape(len(x), -1) @ kernel
    # Patches times a matrix: a convolution whose kernels differ between vmapped seeds would be a grouped one, which
    # CPUs compute many times slower.
    patches = _patches(x, kernel.shape[0], kernel.shape[1])
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _patches(x: jax.Array, height: int, width: int) -> jax.Array:
    """What a strided convolution of odd size sees: `(n, h, w, c)` to `(n, h / 2, w / 2, height * width * c)`."""
    rows, columns = (-(-size // STRIDE) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0)))
    shifted = [
        padded[:, i : i + STRIDE * (rows - 1) + 1 : STRIDE, j : j + STRIDE * (columns - 1) + 1 : STRIDE]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _gaussian(key: jax.Array, shape: tuple[int, ...], gain: float) -> jax.Array:
    fan_in = math.prod(shape[:-1])
    return jax.random.normal(key, shape, jnp.float32) * jnp.float32((gain / fan_in) ** 0.5)
