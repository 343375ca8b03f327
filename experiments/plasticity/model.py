"""The network: a multilayer perceptron with a normalization before every nonlinearity, as plain dicts of arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import normjax as nj

READOUT = "readout"


class Output(NamedTuple):
    """Logits `(n, classes)` and the activations `(n, width)` after each nonlinearity."""

    logits: jax.Array
    activations: list[jax.Array]


def init(key: jax.Array, sizes: Sequence[int], norm: nj.NormTransform | None) -> dict[str, Any]:
    """Parameters `{"hidden_0": {"kernel"}, "norm_0": {"scale", "bias"}, ..., "readout": {"kernel", "bias"}}`.

    Hidden kernels have He's initial scale, the readout 1/sqrt(fan in). A layer that feeds a norm has no bias of its
    own, for the norm would remove it; without a norm it has one.

    Args:
      key: Random key.
      sizes: Inputs, hidden widths, classes.
      norm: The normalization before every nonlinearity, or `None`.

    Returns:
      The parameters, float32.
    """
    hidden = len(sizes) - 2
    keys = jax.random.split(key, hidden + 1)
    params: dict[str, Any] = {}
    for i in range(hidden):
        kernel = _gaussian(keys[i], sizes[i], sizes[i + 1], gain=2.0)
        if norm is None:
            params[f"hidden_{i}"] = {"kernel": kernel, "bias": jnp.zeros(sizes[i + 1], jnp.float32)}
        else:
            params[f"hidden_{i}"] = {"kernel": kernel}
            params[f"norm_{i}"], _ = norm.init(None, jax.ShapeDtypeStruct((1, sizes[i + 1]), jnp.float32))
    kernel = _gaussian(keys[hidden], sizes[-2], sizes[-1], gain=1.0)
    params[READOUT] = {"kernel": kernel, "bias": jnp.zeros(sizes[-1], jnp.float32)}
    return params


def apply(params: dict[str, Any], norm: nj.NormTransform | None, x: jax.Array) -> Output:
    """Maps inputs `(n, features)` to logits and activations."""
    activations = []
    for i in range(sum(name.startswith("hidden_") for name in params)):
        layer = params[f"hidden_{i}"]
        x = x @ layer["kernel"]
        if norm is None:
            x = x + layer["bias"][None, :]
        else:
            x, _ = norm.apply(params[f"norm_{i}"], {}, x, train=True)
        x = jax.nn.relu(x)
        activations.append(x)
    return Output(x @ params[READOUT]["kernel"] + params[READOUT]["bias"][None, :], activations)


def _gaussian(key: jax.Array, fan_in: int, fan_out: int, gain: float) -> jax.Array:
    return jax.random.normal(key, (fan_in, fan_out), jnp.float32) * jnp.float32((gain / fan_in) ** 0.5)
