"""Applies a plan to a parameter tree, wide, and says what it did."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import rich.table

from normjax import _checks
from normjax.fold import centre, rules
from normjax.fold._arrays import is_zero, namespace
from normjax.fold._tree import Leaves, missing
from normjax.fold.plan import Edge, Layer, NormAt, Plan, Refusal
from normjax.optim._paths import InferenceOnly

Dtype = Literal["float64", "float32"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folded(InferenceOnly):
    """A folded parameter tree, for inference only.

    The type is the tag: optimizers that keep account of norms (`nap`, `project_weights`, `track_effective_lr`) refuse
    it, through `jax.tree.map` and inside larger trees. In an nnx tree the changed variables carry the metadata
    `inference_only` besides, which survives `nnx.split` and `nnx.merge`.

    Attributes:
      params: The tree for the model, as it was structured, with the biases that were made.
      needs_bias: Layers that have a bias now and had none: their modules must be built with one.
    """

    params: Any
    needs_bias: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Report:
    """What a plan did to a tree.

    Attributes:
      applied: The edges that were folded.
      refusals: The plan's, and edges that were skipped where the plan was not applied strictly.
      needs_bias: As in `Folded`.
    """

    applied: tuple[Edge, ...]
    refusals: tuple[Refusal, ...]
    needs_bias: tuple[str, ...]

    def table(self) -> rich.table.Table:
        """The report for a terminal."""
        return Plan(self.applied, self.refusals).table()


def apply(
    params: Any, plan: Plan, *, dtype: Dtype = "float64", keep_dtype: bool = True, strict: bool = True
) -> tuple[Folded, Report]:
    """Folds what a plan names.

    Folded norms stay in the tree as identities (gain 1, bias 0, running mean 0 and variance 1 - epsilon), so that the
    model runs unchanged and a second application changes nothing.

    Args:
      params: Nested dicts or an `nnx.State`: parameters, and running statistics where the plan names some. linen's
        `variables` are such a tree; so is `nnx.state(model)`. Boxes stay around their arrays.
      plan: The plan.
      dtype: Dtype to compute in: `"float64"` on the host, `"float32"` where the arrays are, sharded as they are.
      keep_dtype: Whether results are rounded to the dtype that each leaf had; otherwise they stay at least in float32
        (or the wider `dtype`).
      strict: Whether an edge that cannot be applied is an error; otherwise it is left out and reported.

    Returns:
      `(folded, report)`.

    Raises:
      ValueError: If the tree was folded before and unwrapped wrongly, a leaf of the plan is missing, a shape does not
        fit, a bias cannot be made or a border would be wrong; strict only, but for the first.
      TypeError: If the tree is no tree of nested dicts.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> params = {"norm": {"scale": np.full(2, 2.0)}, "dense": {"kernel": np.ones((2, 1))}}
      >>> plan = fold.Plan((fold.Edge("before", (fold.NormAt("norm"),), (fold.Layer("dense"),)),))
      >>> folded, report = fold.apply(params, plan)
      >>> print(folded.params["dense"]["kernel"].T, folded.params["norm"]["scale"])
      [[2. 2.]] [1. 1.]
    """
    tree, report = applied(params, plan, dtype, keep_dtype, strict, mark=True)
    return Folded(tree, report.needs_bias), report


def applied(
    params: Any, plan: Plan, dtype: Dtype, keep_dtype: bool = True, strict: bool = True, *, mark: bool
) -> tuple[Any, Report]:
    """`apply` without the wrapper; `mark` says whether changed nnx variables are for inference only."""
    _checks.check_choice("dtype", dtype, Dtype)
    if isinstance(params, Folded):
        params = params.params
    leaves, done, refusals = Leaves(params, dtype), [], list(plan.refusals)
    for edge in plan.edges:
        reason = _obstacle(leaves, edge)
        if reason is None:
            _APPLY[edge.rule](leaves, edge)
            done.append(edge)
        elif strict:
            raise ValueError(f"cannot fold {edge.name}: {reason} strict=False leaves out what cannot be folded.")
        else:
            refusals.append(Refusal(edge.name, reason))
    made = tuple(path.rpartition("/")[0] for path in leaves.made)
    return leaves.tree(params, keep_dtype, mark), Report(tuple(done), tuple(refusals), made)


def obstacle(params: Any, edge: Edge) -> str | None:
    """Why an edge cannot be applied to a tree, or `None`."""
    return _obstacle(Leaves(params, "float64"), edge)


def _obstacle(leaves: Leaves, edge: Edge) -> str | None:
    needed = [f"{layer.path}/{layer.kernel}" for layer in edge.layers]
    needed += [path for norm in edge.norms for path in _needed(norm)]
    absent = missing(leaves, needed)
    if absent is not None:
        return f"the tree has no {absent}; a norm is folded into all its consumers or into none."
    if edge.rule == "center":
        return None
    if edge.rule == "query-key":
        return _unequal(leaves, edge)
    _, shift = _affine(leaves, edge.norms[0])
    if is_zero(shift):
        return None
    for layer in edge.layers:
        if edge.rule == "before" and layer.padded:
            return (
                f"{layer.path} pads its input with zeros, behind which the norm's shift is missing: pad with "
                "conv_pad_value and let the convolution pad nothing, or keep the norm."
            )
        if not layer.takes_bias and not leaves.has(f"{layer.path}/bias"):
            return f"{layer.path} has no bias to take the norm's shift, and its module takes none."
    return None


def _unequal(leaves: Leaves, edge: Edge) -> str | None:
    query, key = (_affine(leaves, norm) for norm in edge.norms)
    if not all(is_zero(shift) for _, shift in (query, key)):
        return "normalized queries or keys have a bias, which does not go into one gain."
    gains = key[0].reshape(*key[0].shape[:-1], edge.kv_heads, -1)
    unequal = rules.unequal_pairs(gains, edge.rotated, edge.interleaved) if edge.rotated else 0
    if unequal:
        return f"the keys' gain differs within {unequal} rotated pairs: it does not commute with the rotation."
    return None


def _needed(norm: NormAt) -> list[str]:
    return [f"{norm.state or norm.path}/var"] if norm.kind == "running" else []


def _affine(leaves: Leaves, norm: NormAt) -> tuple[Any, Any]:
    """Scale and shift of a norm, wide; `None` for what it has not."""
    if norm.kind == "factor":
        return leaves.get(norm.path if leaves.has(norm.path) else f"{norm.path}/scale"), None
    scale, bias = leaves.get(f"{norm.path}/scale"), leaves.get(f"{norm.path}/bias")
    scale = scale + norm.scale_offset if scale is not None and norm.scale_offset else scale
    if norm.kind == "affine":
        return scale, bias
    state = norm.state or norm.path
    mean, var, alpha = leaves.get(f"{state}/mean"), leaves.get(f"{state}/var"), leaves.get(f"{norm.path}/alpha")
    # One number for each layer of a stack.
    alpha = alpha if alpha is None or alpha.ndim == 0 else alpha.reshape(*alpha.shape[: var.ndim - 1], 1)
    return rules.running_affine(scale, bias, mean, var, norm.epsilon, alpha=alpha)


def _make_identity(leaves: Leaves, norm: NormAt) -> None:
    state = norm.state or norm.path
    values = {f"{norm.path}/scale": 1 - norm.scale_offset, f"{norm.path}/bias": 0, f"{norm.path}/alpha": 0}
    if norm.kind == "factor":
        values = {norm.path: 1, f"{norm.path}/scale": 1}
    elif norm.kind == "affine":
        # DyT's alpha is inside its tanh and stays.
        del values[f"{norm.path}/alpha"]
    else:
        values |= {f"{state}/mean": 0, f"{state}/var": 1 - norm.epsilon}
    for path, value in values.items():
        if leaves.has(path):
            leaves.set(path, leaves.get(path) * 0 + value)


def _layer_of(leaves: Leaves, layer: Layer) -> tuple[Any, Any]:
    return leaves.get(f"{layer.path}/{layer.kernel}"), leaves.get(f"{layer.path}/bias")


def _store(leaves: Leaves, layer: Layer, kernel: Any, bias: Any) -> None:
    leaves.set(f"{layer.path}/{layer.kernel}", kernel)
    if bias is not None and (leaves.has(f"{layer.path}/bias") or not is_zero(bias)):
        leaves.set(f"{layer.path}/bias", bias)


def _stacked(fn: Any, count: int, *arrays: Any) -> Any:
    """`fn` over the leading axes of arrays, of which some may be `None`."""
    if count == 0:
        return fn(*arrays)
    xp = namespace(*(a for a in arrays if a is not None))
    size = next(a.shape[0] for a in arrays if a is not None)
    each = [_stacked(fn, count - 1, *(None if a is None else a[i] for a in arrays)) for i in range(size)]
    return tuple(None if part[0] is None else xp.stack(part) for part in zip(*each, strict=True))


def _before(leaves: Leaves, edge: Edge) -> None:
    scale, shift = _affine(leaves, edge.norms[0])
    for layer in edge.layers:

        def one(kernel, bias, scale, shift, layer=layer):
            scale, shift = (v if v is None else _repeated(v, layer, kernel) for v in (scale, shift))
            shift = shift if shift is None or layer.input_scale == 1 else shift * layer.input_scale
            axes = {"in_axes": layer.in_axes, "out_axes": layer.out_axes, "groups": layer.groups}
            return rules.affine_before(kernel, bias, scale, shift, **axes)

        _store(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer), scale, shift))
    _make_identity(leaves, edge.norms[0])


def _repeated(vector: Any, layer: Layer, kernel: Any) -> Any:
    """A norm's vector on the layer's input axes: repeated for heads, reshaped where several axes are features."""
    vector = vector if layer.repeats == 1 else namespace(vector).tile(vector, layer.repeats)
    shape = tuple(kernel.shape[a] for a in layer.in_axes)
    return vector.reshape(shape) if layer.groups == 1 and vector.size == int(np.prod(shape)) else vector


def _after(leaves: Leaves, edge: Edge) -> None:
    scale, shift = _affine(leaves, edge.norms[0])
    for layer in edge.layers:

        def one(kernel, bias, scale, shift, layer=layer):
            return rules.affine_after(kernel, bias, scale, shift, out_axes=layer.out_axes)

        _store(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer), scale, shift))
    _make_identity(leaves, edge.norms[0])


def _query_key(leaves: Leaves, edge: Edge) -> None:
    query, key = (_affine(leaves, norm)[0] for norm in edge.norms)
    options = {"rotated": edge.rotated, "interleaved": edge.interleaved, "kv_heads": edge.kv_heads}
    merged = _stacked(lambda q, k: rules.qk_gains(q, k, **options), edge.stacked, query, key)
    for norm, value in zip(edge.norms, merged, strict=True):
        leaves.set(f"{norm.path}/scale", value - norm.scale_offset)


def _center(leaves: Leaves, edge: Edge) -> None:
    for layer in edge.layers:
        one = lambda kernel, bias, layer=layer: centre.center_out(kernel, bias, out_axes=layer.out_axes)  # noqa: E731
        _store(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer)))


_APPLY = {"before": _before, "after": _after, "query-key": _query_key, "center": _center}
