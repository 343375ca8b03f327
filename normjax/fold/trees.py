"""Variables of linen modules as trees of nnx modules, and back: the same leaves, sorted by collection or by module."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.optim._paths import boxed_leaves, is_box, listing

STATISTICS = "batch_stats"


def linen_to_nnx(variables: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Linen's `{"params": {module: {...}}, "batch_stats": ...}` as one tree `{module: {scale, bias, mean, var}}`.

    For Flax's layers, the drop-ins of `normjax.linen` and `normjax.nnx` and `Norm`, whose leaves have the same names in
    both. `nnx.update(model, tree)` takes the result.

    Args:
      variables: What `module.init` returned, or was trained to.
      names: New names of modules by their linen path, `{"Dense_0": "hidden"}`; others keep theirs.

    Returns:
      Nested dicts of arrays.

    Raises:
      ValueError: If a name belongs to no module, or two leaves get the same path.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> x = jnp.ones((2, 3))
      >>> variables = nj.linen.BatchNorm(use_running_average=True).init(jax.random.key(0), x)
      >>> tree = fold.linen_to_nnx(variables)
      >>> sorted(tree)
      ['bias', 'mean', 'scale', 'var']
      >>> nnx.update(nj.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), tree)
    """
    leaves: dict[str, Any] = {}
    own = variables.get("params", {})
    for collection, tree in variables.items():
        for path, value in boxed_leaves(tree).items():
            path = _beside(path, own) if collection == STATISTICS else path
            module, _, leaf = path.rpartition("/")
            written = f"{OVERWRITE_WITH_GRADIENT}/{leaf}" if collection == OVERWRITE_WITH_GRADIENT else leaf
            _put(leaves, f"{module}/{written}" if module else written, value)
    return _nested(_renamed(leaves, names or {}))


def nnx_to_linen(tree: Any, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The way back: variables of an nnx module by linen's collections.

    Args:
      tree: `nnx.state(model)`: the types of its variables say which collection they belong to.
      names: New names of modules by their nnx path; others keep theirs.

    Returns:
      `{"params": ..., "batch_stats": ...}`, of the collections that are not empty.

    Raises:
      TypeError: If a leaf is no variable.
      ValueError: As in `linen_to_nnx`.

    Example:
      >>> import normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> variables = fold.nnx_to_linen(nnx.state(nj.nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
      >>> {name: sorted(leaves) for name, leaves in variables.items()}
      {'params': ['bias', 'scale'], 'batch_stats': ['mean', 'var']}
    """
    found: dict[str, dict[str, Any]] = {"params": {}, STATISTICS: {}, OVERWRITE_WITH_GRADIENT: {}}
    for path, variable in boxed_leaves(tree).items():
        if not isinstance(variable, nnx.Variable):
            raise TypeError(f"{path} is a {type(variable).__name__}, expected a variable; pass nnx.state(model).")
        parts = path.split("/")
        if OVERWRITE_WITH_GRADIENT in parts:
            parts.remove(OVERWRITE_WITH_GRADIENT)
            collection = OVERWRITE_WITH_GRADIENT
        elif isinstance(variable, nnx.BatchStat):
            collection, parts = STATISTICS, [part.removesuffix("_state") for part in parts]
        else:
            collection = "params"
        found[collection]["/".join(parts)] = variable.get_value()
    used = {part for leaves in found.values() for path in leaves for part in _modules(path)}
    unknown = set(names or {}) - used
    if unknown:
        raise ValueError(f"names {listing(unknown)} belong to no module; there are {listing(used)}.")
    return {c: _nested(_renamed(leaves, names or {}, check=False)) for c, leaves in found.items() if leaves}


def _beside(path: str, params: Any) -> str:
    """`Norm` keeps state and parameters of a chain's member, which share a name, under two."""
    parts, node = path.split("/"), params
    for index, part in enumerate(parts[:-1]):
        node = node.get(part, {}) if isinstance(node, Mapping) and not is_box(node) else {}
        if part.isdigit() or part == "weights":
            parts[index] = f"{part}_state" if isinstance(node, Mapping) else part
            break
    return "/".join(parts)


def _modules(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _put(leaves: dict[str, Any], path: str, value: Any) -> None:
    if path in leaves:
        raise ValueError(f"two leaves are called {path}; give their modules names of their own.")
    leaves[path] = value


def _renamed(leaves: Mapping[str, Any], names: Mapping[str, str], check: bool = True) -> dict[str, Any]:
    unknown = [n for n in names if not any(p.startswith(f"{n}/") for p in leaves)]
    if unknown and check:
        raise ValueError(f"names {listing(unknown)} belong to no module of {listing(leaves)}.")
    result: dict[str, Any] = {}
    for path, value in leaves.items():
        longest = max((n for n in names if path.startswith(f"{n}/")), key=len, default=None)
        _put(result, path if longest is None else names[longest] + path[len(longest) :], value)
    return result


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
