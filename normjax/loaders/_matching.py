"""Foreign tensors against the rules of a model: what is missing, unexpected, or not what it should be."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.loaders._configuration import Plan
from normjax.loaders.rules import Rule, Table, to_theirs

# Constants that older versions wrote among the parameters.
_BUFFERS = ("*.position_ids", "*.attn.bias", "*.attn.masked_bias", "*.rotary_emb.inv_freq")


def matched(tensors: Mapping[str, Any], plan: Plan, rules: Table, ignore: Sequence[str]) -> Mapping[str, Any]:
    """The tensors by the names of the rules; raises if one is missing, unexpected, or no copy of what it repeats."""
    base = not any(name.startswith(plan.prefix) for name in tensors)
    renamed = {_full(name, plan, rules, base): name for name in tensors}
    if twice := sorted(set(tensors) - set(renamed.values())):
        raise ValueError(f"{_listed(twice)} and tensors of other names are the same parameters; give them once.")
    kept = {k: v for k, v in renamed.items() if not any(fnmatch.fnmatchcase(v, p) for p in (*_BUFFERS, *ignore))}
    missing, unexpected = sorted(set(rules) - set(kept)), sorted(set(kept) - set(rules) - set(plan.copies))
    if missing or unexpected:
        raise ValueError(
            f"missing tensors: {_listed(missing)}; unexpected tensors: {_listed(kept[k] for k in unexpected)}. They "
            "must be those of the configuration; what may be passed over is named in ignore=."
        )
    for copy, original in plan.copies.items():
        if copy in kept and not np.array_equal(np.asarray(tensors[kept[copy]]), np.asarray(tensors[kept[original]])):
            raise ValueError(f"{kept[copy]} differs from {kept[original]}, to which the configuration ties it.")
    return {name: tensors[kept[name]] for name in rules}


def _full(name: str, plan: Plan, rules: Table, base: bool) -> str:
    # As TensorFlow called them; the first checkpoints of BERT still do.
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return plan.prefix + name if base and plan.prefix + name in rules else name


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def foreign_shape(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the tensor that holds our parameters."""
    # A view of one number has the shape and takes no memory.
    return to_theirs(rule, {path: np.broadcast_to(np.float32(0), shapes[path]) for path in rule.paths}).shape


def check(name: str, tensor: np.ndarray, shape: tuple[int, ...], param_dtype: Any) -> None:
    """Raises unless a tensor has the expected shape, and a dtype that can be kept where it is not cast."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tensor.shape}, expected {shape} by the configuration.")
    kept = jnp.issubdtype(tensor.dtype, jnp.floating) and jax.dtypes.canonicalize_dtype(tensor.dtype) == tensor.dtype
    if param_dtype is None and not kept:
        raise ValueError(
            f"{name} is {tensor.dtype}, which cannot be kept; give a floating param_dtype=, or enable float64 in JAX."
        )
