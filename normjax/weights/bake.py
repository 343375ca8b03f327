"""Effective kernels computed once: for inference the wrapped model needs neither its wrapper nor its state."""

import dataclasses
from typing import Any

import jax

from normjax.optim._paths import InferenceOnly, listing
from normjax.weights._transform import Rules, by_path, chosen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Baked(InferenceOnly):
    """Parameters whose reparametrized kernels were replaced by their effective ones, for inference only.

    The type is the tag: optimizers that keep account of norms refuse it, and so does `bake`.

    Attributes:
      params: The parameter tree, structured as before, for the model without its wrappers.
      paths: Which leaves were replaced.
    """

    params: Any
    paths: tuple[str, ...] = dataclasses.field(metadata={"static": True})


def bake(params: Any, rules: Rules, *, own: Any = None, state: Any = None) -> Baked:
    """Computes the effective kernels of a parameter tree once.

    Gradients of a baked kernel are no longer orthogonal to it, and its norm has a meaning: train and project the tree
    that was baked from, not the result.

    Args:
      params: The parameter tree with the stored kernels.
      rules: Which leaves are reparametrized, and how, as in `by_path`.
      own: The parameters of the reparametrization (weight normalization's scales), `{path: ...}` as `by_path(rules)`
        makes them; not needed where no transform has any.
      state: Its state (spectral normalization's vectors), likewise.

    Returns:
      A `Baked`: the new tree, and the paths of the leaves that were replaced.

    Raises:
      TypeError: If a rule is no `WeightTransform`.
      ValueError: If the tree was baked before, if a rule names no leaf, or if a transform has parameters or state and
        they were not given.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params = {"conv": {"kernel": jnp.array([[1.0], [3.0]]), "bias": jnp.zeros(1)}}
      >>> baked = nj.bake(params, {"kernel": nj.weight_standardization(unbiased=False)})
      >>> print(baked.params["conv"]["kernel"].T.round(3), baked.paths)
      [[-1.  1.]] ('conv/kernel',)
    """
    if isinstance(params, Baked):
        raise ValueError(f"these parameters are baked already, at {listing(params.paths)}; bake those they came from.")
    flat, found = chosen(rules, params)
    given = {}
    for name, held, index in (("own", own or {}, 0), ("state", state or {}, 1)):
        key = jax.random.key(0)
        needed = {p: jax.eval_shape(t.init, key, flat.leaves[p])[index] for p, t in found.items()}
        missing = [path for path, entries in needed.items() if entries and path not in held]
        if missing:
            raise ValueError(
                f"the transforms of {listing(missing)} have values of their own; pass {name}=, "
                "a dict {path: values} as by_path(rules).init makes it, with the trained values."
            )
        given[name] = {path: held.get(path, {}) for path in found} | held
    effective, _ = by_path(rules).apply(given["own"], given["state"], params, train=False)
    return Baked(effective, tuple(found))
