"""Logical axis names of parameters, in Flax's metadata `out_sharding`; `normjax.sharding` maps them to a mesh."""

from typing import Any

from flax import nnx

from normjax.nnx import Norm
from normjax.transform import NormTransform


def named(*axes: str | None) -> dict[str, Any]:
    """Metadata of a parameter whose axes have these names.

    Flax would shard it while it is made, which needs a mesh and its rules; most models are made without.
    """
    return {"out_sharding": axes, "eager_sharding": False}


def linear_names(inputs: str, outputs: str) -> dict[str, Any]:
    """The names of a linear layer, as its arguments."""
    return {"kernel_metadata": named(inputs, outputs), "bias_metadata": named(outputs)}


def named_norm(norm: NormTransform, features: int, rngs: nnx.Rngs, name: str = "norm") -> Norm:
    """A norm whose parameters with one number per feature carry the name of that axis."""
    with nnx.use_eager_sharding(False):
        layer = Norm(norm, features, rngs=rngs)
    for _, node in nnx.iter_graph(layer):
        if isinstance(node, nnx.Param) and node.shape[-1:] == (features,):
            node.set_metadata(out_sharding=(*(None,) * (node.ndim - 1), name))
    return layer
