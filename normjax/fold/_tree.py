"""Parameter trees as `{path: array}` while a fold works on them, wide, and back in the form they came in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from normjax.optim._paths import boxed_leaves, is_box, listing
from normjax.precision import promote


class Leaves:
    """The leaves of a tree by path: read wide, written wide, rounded once at the end."""

    def __init__(self, tree: Any, dtype: str):
        """Takes the leaves of a tree; values are widened when they are asked for.

        Args:
          tree: Nested dicts, with linen's or nnx's boxes around arrays or without.
          dtype: `"float64"` for NumPy on the host, `"float32"` for JAX where the arrays are.
        """
        self.boxed = boxed_leaves(tree)
        self.dtype = np.dtype(dtype)
        self.wide: dict[str, Any] = {}
        self.made: list[str] = []

    def has(self, path: str) -> bool:
        """Whether there is a leaf."""
        return path in self.wide or path in self.boxed

    def get(self, path: str) -> Any:
        """The wide value of a leaf, or `None`."""
        if path not in self.wide:
            if path not in self.boxed:
                return None
            value = self.value(path)
            if self.dtype == np.float64:
                # NumPy on the host: no float64 is asked of a device that may have none.
                self.wide[path] = np.asarray(value).astype(np.float64)
            else:
                self.wide[path] = jnp.asarray(value).astype(promote(value.dtype, self.dtype))
        return self.wide[path]

    def value(self, path: str) -> Any:
        """A leaf as it came, out of its box."""
        node = self.boxed[path]
        return jax.tree.leaves(node)[0] if is_box(node) else node

    def set(self, path: str, value: Any) -> None:
        """Changes a leaf, or makes one."""
        if path not in self.boxed and path not in self.made:
            self.made.append(path)
        self.wide[path] = value

    def rounded(self, path: str, like: str, keep_dtype: bool) -> Any:
        """The new value in the dtype and the sharding of the leaf `like`."""
        old, new = self.value(like), self.wide[path]
        new = new.astype(old.dtype) if keep_dtype and old.dtype != new.dtype else new
        if isinstance(old, jax.Array) and not isinstance(old, Tracer):
            # A new bias is a vector beside a kernel: it has no sharding of its own to keep.
            return jax.device_put(new, old.sharding) if path == like else jnp.asarray(new)
        return new

    def tree(self, original: Any, keep_dtype: bool, mark: bool) -> Any:
        """The original tree with the new values, in boxes where there were boxes; `mark` is for nnx variables."""
        if not isinstance(original, Mapping):
            kind = type(original).__name__
            raise TypeError(
                f"expected a tree of nested dicts or nnx.state(model), got {kind}; see fold_model for ours."
            )
        changed = {p: self.rounded(p, p, keep_dtype) for p in self.wide if p in self.boxed}
        changed = {p: _reboxed(self.boxed[p], v, mark) for p, v in changed.items()}
        for path in self.made:
            beside = next(p for p in self.boxed if p.startswith(path.rpartition("/")[0] + "/"))
            changed[path] = _new_box(self.boxed[beside], self.rounded(path, beside, keep_dtype), mark)
        return _rebuilt(original, changed, set(self.made))


def _reboxed(node: Any, value: Any, mark: bool) -> Any:
    if isinstance(node, nnx.Variable):
        return node.replace(value, **_tag(mark))
    return node.replace_boxed(value) if is_box(node) else value


def _new_box(node: Any, value: Any, mark: bool) -> Any:
    return nnx.Param(value, **_tag(mark)) if isinstance(node, nnx.Variable) else value


def _tag(mark: bool) -> dict[str, Any]:
    return {"inference_only": True} if mark else {}


def _rebuilt(tree: Any, changed: Mapping[str, Any], made: set[str], prefix: str = "") -> Any:
    items = {}
    for key, node in tree.items():
        path = f"{prefix}{key}"
        inner = isinstance(node, Mapping) and not is_box(node)
        items[key] = _rebuilt(node, changed, made, path + "/") if inner else changed.get(path, node)
    new = [path for path in made if path.rpartition("/")[0] + "/" == prefix]
    items |= {path.rpartition("/")[2]: changed[path] for path in new}
    return nnx.State(items) if isinstance(tree, nnx.State) else items


def missing(leaves: Leaves, paths: list[str]) -> str | None:
    """What a message says of paths that a tree does not have, or `None`."""
    absent = [path for path in paths if not leaves.has(path)]
    return f"{listing(absent)} of {listing(leaves.boxed)}" if absent else None
