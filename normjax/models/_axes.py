"""Logical axis names of parameters, in Flax's metadata `out_sharding`; `normjax.sharding` maps them to a mesh."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from normjax.nnx import Norm
from normjax.transform import NormTransform


def named(*axes: str | None) -> dict[str, Any]:
    """Metadata of a parameter whose axes have these names.

    Flax would shard it while it is made, which needs a mesh and its rules; most models are made without.
    """
    return {"out_sharding": axes, "eager_sharding": False}


def linear_names(inputs: str | None, outputs: str | None) -> dict[str, Any]:
    """The names of a linear layer, as its arguments."""
    return {"kernel_metadata": named(inputs, outputs), "bias_metadata": named(outputs)}


def conv_names(inputs: str | None, outputs: str | None) -> dict[str, Any]:
    """The names of a convolution over height and width, as its arguments."""
    return {"kernel_metadata": named(None, None, inputs, outputs), "bias_metadata": named(outputs)}


def named_norm(
    norm: NormTransform,
    features: int | tuple[int, ...],
    rngs: nnx.Rngs,
    name: str | tuple[str | None, ...] = "norm",
    *,
    dtype: Any = jnp.float32,
    **context: Any,
) -> Norm:
    """A norm whose parameters and statistics with one number per feature carry the name of that axis.

    Args:
      norm: The transform.
      features: As in `Norm`.
      rngs: As in `Norm`.
      name: Of the features, or of as many last axes of the shape.
      dtype: As in `Norm`.
      **context: As in `Norm`. Where there is a `condition`, what maps it to features has the axes of a matrix that
        reads the stream.
    """
    names = (name,) if isinstance(name, str) else name
    sizes = (features,) if isinstance(features, int) else features[-len(names) :]
    condition = context["condition"].shape[-1] if "condition" in context else None
    with nnx.use_eager_sharding(False):
        layer = Norm(norm, features, dtype=dtype, **context, rngs=rngs)
    for _, node in nnx.iter_graph(layer):
        if isinstance(node, nnx.Param | nnx.BatchStat) and (axes := _axes(node.shape, sizes, names, condition)):
            node.set_metadata(out_sharding=axes)
    return layer


def _axes(
    shape: tuple[int, ...], sizes: tuple[int, ...], names: tuple[str | None, ...], condition: int | None
) -> tuple[str | None, ...]:
    if condition is not None and shape[-1:] and shape[-1] % sizes[-1] == 0:
        # Shift, scale and gate lie beside each other.
        if shape[:-1] == (condition,):
            return ("embed", *names)
        if len(shape) == 1:
            return names
    return (*(None,) * (len(shape) - len(sizes)), *names) if shape[-len(sizes) :] == sizes else ()
