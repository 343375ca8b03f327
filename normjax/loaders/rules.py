"""Tables of names: which tensor of a foreign checkpoint holds which parameters of ours, and how they lie in it."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, Any]


class Rule(NamedTuple):
    """What one foreign tensor holds.

    Attributes:
      paths: Ours; several lie in it one after the other.
      order: Its axes in our order: (1, 0) for a matrix (outputs, inputs); empty where they are the same.
      axis: Along which several of ours lie, in the foreign tensor.
      leading: How many axes of size 1 it has before ours.
    """

    paths: tuple[str, ...]
    order: tuple[int, ...] = ()
    axis: int = 0
    leading: int = 0


Table = dict[str, Rule]


def linear(theirs: str, *ours: str, transposed: bool = True) -> Table:
    """A linear layer, or several side by side in one: weight and bias."""
    kernels, biases = (tuple(f"{path}.{name}" for path in ours) for name in ("kernel", "bias"))
    # Several layers lie one after the other along the outputs.
    weight = Rule(kernels, (1, 0)) if transposed else Rule(kernels, axis=1)
    return {f"{theirs}.weight": weight, f"{theirs}.bias": Rule(biases)}


def convolution(theirs: str, ours: str) -> Table:
    """A convolution of images, (outputs, inputs, height, width) there: weight and bias."""
    return {f"{theirs}.weight": Rule((f"{ours}.kernel",), (2, 3, 1, 0)), f"{theirs}.bias": Rule((f"{ours}.bias",))}


def norm(theirs: str, ours: str) -> Table:
    """A norm: scale and bias."""
    return {f"{theirs}.weight": Rule((f"{ours}.scale",)), f"{theirs}.bias": Rule((f"{ours}.bias",))}


def embedding(theirs: str, ours: str) -> Table:
    """An embedding."""
    return {f"{theirs}.weight": Rule((f"{ours}.embedding",))}


def joined(*tables: Table) -> Table:
    """One table of several."""
    return functools.reduce(lambda a, b: a | b, tables, {})


def placed(table: Table, theirs: str = "", ours: str = "") -> Table:
    """The table with these prefixes of the names on either side."""
    return {
        theirs + name: rule._replace(paths=tuple(ours + path for path in rule.paths)) for name, rule in table.items()
    }


def at_every(table: Table, blocks: int) -> Table:
    """The table with `{i}` replaced by the number of each block."""
    repeated = [{k: v} if "{i}" not in k else dict(_numbered(k, v, blocks)) for k, v in table.items()]
    return joined(*repeated)


def _numbered(name: str, rule: Rule, blocks: int) -> Iterable[tuple[str, Rule]]:
    fill = lambda text, i: text.replace("{i}", str(i))  # noqa: E731
    return ((fill(name, i), rule._replace(paths=tuple(fill(p, i) for p in rule.paths))) for i in range(blocks))


def to_ours(rule: Rule, tensor: Any) -> Arrays:
    """Our parameters in a foreign tensor."""
    tensor = tensor.reshape(tensor.shape[rule.leading :])
    parts = np.split(tensor, len(rule.paths), rule.axis) if len(rule.paths) > 1 else [tensor]
    ours = (part.transpose(rule.order) if rule.order else part for part in parts)
    return dict(zip(rule.paths, ours, strict=True))


def to_theirs(rule: Rule, params: Mapping[str, Any]) -> Any:
    """The foreign tensor that holds our parameters."""
    back = np.argsort(rule.order)
    parts = [params[path].transpose(back) if rule.order else params[path] for path in rule.paths]
    tensor = np.concatenate(parts, rule.axis) if len(parts) > 1 else parts[0]
    return tensor.reshape((1,) * rule.leading + tensor.shape)
