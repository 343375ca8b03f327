"""Parameter trees as `{path: array}`: the metadata-free view that every transform of this room works on.

linen's `Partitioned` and nnx's `Param` wrap an array and describe how its axes are sharded. A norm has none
of those axes, so state that kept the wrapper would carry a wrong sharding; state keyed by path cannot.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from flax.core import meta

ROOT = "."  # the path of a parameter tree that is a single array; an empty name is not a valid checkpoint key


def is_box(node: Any) -> bool:
    """True for a wrapper around one array: a linen `AxisMetadata` box or an nnx `Variable`."""
    return isinstance(node, meta.AxisMetadata | nnx.Variable)


def path_string(keys: Iterable[Any]) -> str:
    """`(DictKey('Dense_0'), DictKey('kernel'))` -> `'Dense_0/kernel'`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/") or ROOT


def listing(paths: Iterable[str]) -> str:
    """At most eight names for an error message."""
    names = sorted(paths)
    shown = ", ".join(repr(name) for name in names[:8])
    return f"[{shown}{f', ... {len(names) - 8} more' if len(names) > 8 else ''}]"


class InferenceOnly:
    """Base of the types that wrap parameters which no optimizer may take for trained ones: baked and folded trees."""


def is_inference_only(node: Any) -> bool:
    """True for such a wrapper, and for an nnx variable that is marked so."""
    marked = isinstance(node, nnx.Variable) and node.get_metadata().get("inference_only", False)
    return isinstance(node, InferenceOnly) or bool(marked)


def refuse_inference_only(tree: Any, what: str) -> None:
    """Raise if a tree is, or holds, parameters that were baked or folded for inference."""
    stop = lambda node: is_box(node) or is_inference_only(node)  # noqa: E731
    if any(is_inference_only(leaf) for leaf in jax.tree.leaves(tree, is_leaf=stop)):
        raise ValueError(
            f"{what} got parameters that were folded (or baked) for inference: their norms contain gains and statistics"
            " that were moved into them, so there is no initial norm to keep. Train the parameters they came from."
        )


class FlatTree(NamedTuple):
    """Leaves of a tree by path, in leaf order, and the structure that puts them back."""

    leaves: dict[str, Any]
    treedef: Any

    def replace(self, new: Mapping[str, Any]) -> Any:
        """The original tree with the leaves named in `new` exchanged."""
        return self.treedef.unflatten([new.get(path, leaf) for path, leaf in self.leaves.items()])


def boxed_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by path, each still in the box it came in; two leaves with one path raise."""
    stop = is_box if is_leaf is None else (lambda node: is_box(node) or is_leaf(node))
    leaves: dict[str, Any] = {}
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=stop)[0]:
        path = path_string(keys)
        if path in leaves:
            raise ValueError(
                f"Two leaves of the parameter tree share the path {path!r}; state is keyed by path. Rename one of the "
                "keys (a key that contains '/' and an integer key next to its own text are the usual causes)."
            )
        leaves[path] = node
    return leaves


def flatten(tree: Any) -> FlatTree:
    """`tree` by path with every box removed; empty boxes (`optax.masked`) and `None` have no leaf."""
    contents = {path: jax.tree.leaves(node) for path, node in boxed_leaves(tree).items()}
    leaves = {path: found[0] for path, found in contents.items() if found}
    return FlatTree(leaves, jax.tree.structure(tree))


def _covers(key: str, path: str) -> bool:
    return key in (ROOT, path) or path.startswith(key + "/") or path.endswith("/" + key)


def _agree(a: Any, b: Any) -> bool:
    return isinstance(a, bool | int | float | str | tuple | None) and type(a) is type(b) and a == b


def _lookup(path: str, spec: Mapping[str, Any], what: str) -> list[Any]:
    if path in spec:
        return [spec[path]]
    hits = sorted((key for key in spec if _covers(key, path)), key=lambda key: (key != ROOT, key.count("/")))
    rivals = [key for key in hits[:-1] if key != ROOT and key.count("/") == hits[-1].count("/")]
    rivals = [key for key in rivals if not _agree(spec[key], spec[hits[-1]])]
    if rivals:
        raise ValueError(
            f"{what} is ambiguous for {path!r}: both {rivals[0]!r} and {hits[-1]!r} name it. Give {path!r} itself."
        )
    return [spec[hits[-1]]] if hits else []


def match(spec: Any, paths: Iterable[str], what: str, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Spread a per-leaf option over parameter paths.

    `spec` is one value for all leaves, a (prefix) tree of the parameters, or a dictionary keyed by path. A
    key names the subtree that starts with it (`"encoder"`) or the leaves that end with it (`"kernel"`); the
    longest key wins.

    Returns:
      `{path: value}` for the paths that `spec` covers.

    Raises:
      ValueError: an entry of `spec` names no parameter, or two entries name one parameter equally well.
    """
    known = list(paths)
    entries = {}
    for key, node in boxed_leaves(spec, is_leaf).items():
        content = jax.tree.leaves(node, is_leaf=is_leaf) if is_box(node) else [node]
        entries.update({key: content[0]} if content else {})
    unknown = [key for key in entries if not any(_covers(key, path) for path in known)]
    if unknown:
        raise ValueError(
            f"{what} names {listing(unknown)}, which are not parameters. The parameters are {listing(known)}; give a "
            "(prefix) tree of the parameters or a dictionary keyed by their paths."
        )
    found = {path: _lookup(path, entries, what) for path in known}
    return {path: values[0] for path, values in found.items() if values}


def check_same_paths(stored: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raise if the state was made for other parameters, e.g. restored from another architecture."""
    missing, extra = set(expected) - set(stored), set(stored) - set(expected)
    if missing or extra:
        raise ValueError(
            f"{what} in the optimizer state do not belong to these parameters: missing {listing(missing)}, left over "
            f"{listing(extra)}. The state was initialised or restored for another architecture or mask; restore the "
            "matching checkpoint, or call init again if starting afresh is what you want."
        )
