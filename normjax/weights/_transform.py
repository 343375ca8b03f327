"""The pair of pure functions that every weight reparametrization is, and the way from kernels to parameter trees.

What `NormTransform` is to activations, `WeightTransform` is to kernels: `init` makes parameters and state, `apply` maps
the stored kernel to the effective one that the layer computes with. The stored kernel is an input and never an output.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from normjax.optim._paths import FlatTree, flatten, listing, match

Params = Any
State = Any


class WeightInitFn(Protocol):
    """`init(rng, kernel) -> (params, state)`."""

    def __call__(self, rng: jax.Array | None, kernel: Any) -> tuple[Params, State]:
        """Makes parameters and state; `rng` may be `None` where nothing is random."""
        ...


class WeightApplyFn(Protocol):
    """`apply(params, state, kernel, *, train) -> (effective, state)`."""

    def __call__(self, params: Params, state: State, kernel: Any, *, train: bool) -> tuple[Any, State]:
        """Makes the effective kernel; state moves in training only."""
        ...


class WeightTransform(NamedTuple):
    r"""A weight reparametrization as a pair of pure functions.

    Unlike a norm's, its `init` may read values and not shapes alone: weight normalization starts at $g = \|v\|$.
    Under `jax.eval_shape` it is as abstract as any function.

    Attributes:
      init: `init(rng, kernel) -> (params, state)`.
      apply: `apply(params, state, kernel, *, train) -> (effective, state)`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> transform = nj.weight_norm()
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> params, state = transform.init(None, kernel)
      >>> effective, state = transform.apply({"scale": jnp.ones(2)}, state, kernel, train=True)
      >>> print(params["scale"], effective[:, 0].round(3))
      [5. 1.] [0.6 0.8]
    """

    init: WeightInitFn
    apply: WeightApplyFn


Rules = Mapping[str, WeightTransform] | WeightTransform | Callable[[str, Any], WeightTransform | None]


def stateless(
    fn: Callable[[Params, jax.Array], jax.Array], init_params: Callable[[Any, Any], Params] | None = None
) -> WeightTransform:
    """Lifts `fn(params, kernel) -> effective` and `init_params(rng, kernel) -> params` to a transform without state."""

    def init(rng, kernel):
        return ({} if init_params is None else init_params(rng, kernel)), {}

    def apply(params, state, kernel, *, train):
        del train
        return fn(params, kernel), state

    return WeightTransform(init, apply)


def by_path(rules: Rules) -> WeightTransform:
    """Lifts transforms of kernels to one of whole parameter trees: the same signature, a tree for the kernel.

    Args:
      rules: Which leaves are reparametrized, and how. A mapping of paths: a key names the leaf of that path
        (`"encoder/Dense_0/kernel"`), the leaves that end with it (`"kernel"`) or the subtree that starts with it
        (`"encoder"`); the longest key wins. A single transform takes every leaf. A function `rules(path, leaf)` returns
        the transform of that leaf, or `None`.

    Returns:
      The transform of trees. Its parameters and state are dicts `{path: ...}` of what each leaf's transform keeps;
      leaves without a rule pass. Boxes (linen's `Partitioned`, nnx's `Param`) stay around the effective leaves.

    Raises:
      TypeError: If a rule is no `WeightTransform`.
      ValueError: If a key names no leaf, if two keys name one leaf equally well, or if parameters and state were made
        for other leaves.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> tree = {"Dense_0": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
      >>> transform = nj.by_path({"kernel": nj.weight_norm()})
      >>> params, state = transform.init(None, tree)
      >>> print(params)
      {'Dense_0/kernel': {'scale': Array([2., 2.], dtype=float32)}}
      >>> effective, state = transform.apply(params, state, tree, train=True)
      >>> sorted(effective["Dense_0"])
      ['bias', 'kernel']
    """

    def init(rng, kernel):
        tree, found = chosen(rules, kernel)
        rngs = [None] * len(found) if rng is None or not found else jax.random.split(rng, len(found))
        params, state = {}, {}
        for (path, transform), key in zip(found.items(), rngs, strict=True):
            params[path], state[path] = transform.init(key, tree.leaves[path])
        return params, state

    def apply(params, state, kernel, *, train):
        tree, found = chosen(rules, kernel)
        for what, held in (("parameters", params), ("state", state)):
            if set(held) != set(found):
                raise ValueError(
                    f"the rules name the leaves {listing(found)}, but the {what} of the reparametrization are those of "
                    f"{listing(held)}; make them with init for this tree and these rules."
                )
        effective, new_state = {}, {}
        for path, transform in found.items():
            leaf = tree.leaves[path]
            effective[path], new_state[path] = transform.apply(params[path], state[path], leaf, train=train)
        return tree.replace(effective), new_state

    return WeightTransform(init, apply)


def chosen(rules: Rules, tree: Any) -> tuple[FlatTree, dict[str, WeightTransform]]:
    """Returns the leaves of `tree` by path, and the transforms of those that `rules` choose, in leaf order."""
    flat = flatten(tree)
    if callable(rules):
        picked = ((path, rules(path, leaf)) for path, leaf in flat.leaves.items())
        found = {path: transform for path, transform in picked if transform is not None}
    else:
        # Any named tuple is a rule, so that a norm among them is named below and not taken apart.
        found = match(rules, flat.leaves, "a rule", is_leaf=lambda node: isinstance(node, tuple))
    _check_transforms(found.values())
    return flat, found


def _check_transforms(transforms: Iterable[Any]) -> None:
    for t in transforms:
        if not isinstance(t, WeightTransform):
            raise TypeError(
                f"a rule must be a WeightTransform, got {t!r}; a factory must be called, e.g. weight_norm()."
            )
