"""Meshes, and the few rules that need saying: which axis of a mesh each named axis of a parameter is cut along.

The parameters of the models in `normjax.models` (language model, encoder, ViT, DiT, nGPT, ResNet, MLP) carry names:
`embed` (the stream), `heads`, `kv_heads`, `mlp` (what lies inside of a block), `vocab`, `positions`, `norm` (scales and
statistics of norms on the stream, gates) and `layers` (stacked blocks). The axis of classes has no name: few divide. A
table of rules maps names to axes of a mesh; everything else follows from it: optimizer states keep the boxes of the
parameters they belong to, and what has no name is replicated. Under `jax.jit` the compiler inserts the collectives.

The axes of the mesh are `Auto`: with `Explicit` ones a model has to say the sharding of each product itself. Two things
remain to be said: `stream_sharding=batch_sharding(mesh)` of a model or its configuration, else the compiler may cut the
stream as it finds the parameters cut, and `out_shardings=shardings((model, opt_state), mesh, rules)` where a step is
jitted, else it may return small parameters somewhere else than it got them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | tuple[str, ...] | None]

_NAMES = ("embed", "heads", "kv_heads", "mlp", "vocab", "positions", "norm", "layers")
_WHOLE: dict[str, str | tuple[str, ...] | None] = dict.fromkeys(_NAMES)
_TENSOR = {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"}

DATA: Rules = MappingProxyType(_WHOLE)
"""Every device has all parameters and its share of the batch."""
FSDP: Rules = MappingProxyType(_WHOLE | {"embed": "data"})
"""Parameters and their moments are cut along the stream over the axis that cuts the batch."""
TENSOR: Rules = MappingProxyType(_WHOLE | _TENSOR)
"""Heads, hidden features and vocabulary are cut over `model`."""
MIXED: Rules = MappingProxyType(_WHOLE | _TENSOR | {"embed": "data"})
"""Both: the stream over `data`, heads, hidden features and vocabulary over `model`."""


def make_mesh(data: int | None = None, model: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data`, which cuts batches, and `model`, which cuts layers.

    Args:
      data: Devices along `data`; `None` for as many as there are.
      model: Devices along `model`.
      devices: The devices, of this process or of a topology to compile for; `None` is `jax.devices()`.

    Returns:
      The mesh, of `Auto` axes.

    Raises:
      ValueError: If the counts do not multiply to the number of devices.

    Example:
      >>> from normjax import sharding
      >>> dict(sharding.make_mesh(devices=jax.devices()[:1]).shape)
      {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    data = len(devices) // model if data is None else data
    if data * model != len(devices) or min(data, model) < 1:
        raise ValueError(
            f"data={data} times model={model} is not the number of devices, {len(devices)}; choose factors of it, or "
            "pass devices=jax.devices()[:n]."
        )
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of each array of a tree, by the names that its box carries.

    Args:
      tree: A model, its state, an optimizer state, or any tree of them, concrete or abstract. Boxes are nnx variables
        with `out_sharding` and linen's `Partitioned`.
      mesh: The mesh.
      rules: The axis or axes of the mesh for each name, `None` for none. Every name has to be there.

    Returns:
      The tree with a `NamedSharding` in the place of each box and each array without one: what `out_shardings` of
      `jax.jit` and `jax.device_put` take.

    Raises:
      ValueError: If a name is in no rule, a rule names no axis of the mesh, two axes of one parameter are cut over the
        same one, or a size does not divide.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import sharding
      >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
      >>> kernel = nnx.Param(jnp.ones((2, 4)), out_sharding=("embed", "mlp"), eager_sharding=False)
      >>> {k: tuple(s.spec) for k, s in sharding.shardings({"up": kernel, "n": 0}, mesh, sharding.MIXED).items()}
      {'n': (), 'up': ('data', 'model')}
    """

    def sharding_of(path: Any, node: Any) -> NamedSharding:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(where, _names(node), np.shape(_array(node)), mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding_of, tree, is_leaf=_is_box)


def shard(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Puts the arrays of a tree where the rules say.

    Args:
      tree, mesh, rules: As in `shardings`.

    Returns:
      The tree; a model is a new one.

    Raises:
      ValueError: As `shardings`.

    Example:
      >>> from normjax import sharding
      >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
      >>> names = {"out_sharding": ("embed", "mlp"), "eager_sharding": False}
      >>> layer = nnx.Linear(2, 4, kernel_metadata=names, rngs=nnx.Rngs(0))
      >>> tuple(sharding.shard(layer, mesh, sharding.FSDP).kernel[...].sharding.spec)
      ('data', None)
    """
    return jax.device_put(tree, shardings(tree, mesh, rules))


def abstract(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A tree of shapes with their shardings: to compile for, or to restore a checkpoint into, without any memory.

    Args:
      tree: As in `shardings`; what `jax.eval_shape(make)` returns, say.
      mesh, rules: As in `shardings`.

    Returns:
      The tree with `jax.ShapeDtypeStruct` in the place of each array.

    Raises:
      ValueError: As `shardings`.

    Example:
      >>> from normjax import sharding
      >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
      >>> model = jax.eval_shape(lambda: nnx.Linear(2, 4, rngs=nnx.Rngs(0)))
      >>> tuple(sharding.abstract(model, mesh, sharding.FSDP).kernel.sharding.spec)
      ()
    """
    placed = shardings(tree, mesh, rules)
    return jax.tree.map(
        lambda s, node: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), node), placed, tree
    )


def create(make: Callable[[], Any], mesh: Mesh, rules: Rules) -> Any:
    """Makes a model, or a model and its optimizer state, each array on the devices that will hold it.

    Args:
      make: Makes any tree; it is traced, and nothing it makes is ever whole on one device.
      mesh, rules: As in `shardings`.

    Returns:
      What `make` returns.

    Raises:
      ValueError: As `shardings`.

    Example:
      >>> from normjax import sharding
      >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
      >>> layer = sharding.create(lambda: nnx.Linear(2, 4, rngs=nnx.Rngs(0)), mesh, sharding.FSDP)
      >>> layer.kernel.shape
      (2, 4)
    """
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh, rules))()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of everything whose first axis is the batch.

    Args:
      mesh: The mesh.

    Returns:
      A sharding over `data`, for `jax.device_put` of batches and `in_shardings`.

    Example:
      >>> from normjax import sharding
      >>> tuple(sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1])).spec)
      ('data',)
    """
    return NamedSharding(mesh, PartitionSpec("data"))


def _is_box(node: Any) -> bool:
    return isinstance(node, nnx.Variable | meta.AxisMetadata)


def _array(node: Any) -> Any:
    return next(iter(jax.tree.leaves(node)), None) if _is_box(node) else node


def _names(node: Any) -> tuple[Any, ...]:
    if isinstance(node, nnx.Variable):
        return tuple(node.get_metadata().get("out_sharding") or ())
    return tuple(nn.get_partition_spec(node)) if isinstance(node, meta.AxisMetadata) else ()


def _spec(where: str, names: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    if unknown := [name for name in names if name is not None and name not in rules]:
        raise ValueError(
            f"{where} has axes named {names}; rules say nothing of {unknown}. Add them, with None for axes that stay "
            f"whole: rules | {{{unknown[0]!r}: None}}."
        )
    cut = [None if name is None else rules[name] for name in names]
    used = [axis for axes in cut if axes is not None for axis in ((axes,) if isinstance(axes, str) else axes)]
    if len(set(used)) < len(used) or not set(used) <= set(mesh.shape):
        raise ValueError(
            f"{where} with axes named {names} would be cut over {used}; expected different axes of the mesh, "
            f"{tuple(mesh.shape)}."
        )
    if names and len(names) != len(shape):
        raise ValueError(f"{where} of shape {shape} names {len(names)} axes, {names}; expected one name for each.")
    for name, size, axes in zip(names, shape, cut, strict=False):
        parts = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
        if size % parts:
            raise ValueError(
                f"{where} of shape {shape} has {size} along {name!r}, which {parts} devices do not divide. Use another "
                f"mesh, or keep that axis whole: rules | {{{name!r}: None}}."
            )
    return PartitionSpec(*cut)
