"""What one edge of a plan changes in a tree, or why it cannot."""

from typing import Any

import numpy as np
from jax.core import Tracer

from normjax.fold import centre, gains, rules
from normjax.fold._arrays import is_zero, namespace
from normjax.fold._tree import Leaves, missing
from normjax.fold.plan import Edge, Layer, NormAt

Changes = dict[str, Any]


def attempt(leaves: Leaves, edge: Edge) -> tuple[str | None, Changes]:
    """Why an edge cannot be applied, or what it changes: all of it or nothing."""
    try:
        reason = _obstacle(leaves, edge)
        return reason, {} if reason else _CHANGES[edge.rule](leaves, edge)
    except ValueError as error:
        # A shape, groups or a variance that do not fit.
        return str(error), {}


def obstacle(params: Any, edge: Edge) -> str | None:
    """Why an edge cannot be applied to a tree, or `None`."""
    return _obstacle(Leaves(params, "float64"), edge)


def _obstacle(leaves: Leaves, edge: Edge) -> str | None:
    needed = [layer.kernel_path for layer in edge.layers]
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
        if not layer.takes_bias and not leaves.has(layer.bias_path):
            return f"{layer.path} has no bias to take the norm's shift, and its module takes none."
    return None


def _unequal(leaves: Leaves, edge: Edge) -> str | None:
    query, key = (_affine(leaves, norm) for norm in edge.norms)
    if not all(is_zero(shift) for _, shift in (query, key)):
        return "normalized queries or keys have a bias, which does not go into one gain."
    if edge.rotated and isinstance(key[0], Tracer):
        return "the keys' gain is traced: whether it commutes with the rotation is only known outside of jit."
    keys = key[0].reshape(*key[0].shape[:-1], edge.kv_heads, -1)
    unequal = gains.unequal_pairs(keys, edge.rotated, edge.interleaved) if edge.rotated else 0
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
    return _behind(norm.skips, *rules.running_affine(scale, bias, mean, var, norm.epsilon, alpha=alpha))


def _behind(count: int, scale: Any, shift: Any) -> tuple[Any, Any]:
    """Scale and shift of all features, of which the norm leaves the first ones alone."""
    if count == 0:
        return scale, shift
    xp, shape = namespace(scale, shift), (*scale.shape[:-1], count)
    ends = (xp.ones(shape, scale.dtype), scale), (xp.zeros(shape, shift.dtype), shift)
    return tuple(xp.concatenate(end, -1) for end in ends)  # pyright: ignore[reportReturnType]


def _identity(leaves: Leaves, norm: NormAt) -> Changes:
    """The leaves of a norm that does nothing any more."""
    state = norm.state or norm.path
    values = {f"{norm.path}/scale": 1 - norm.scale_offset, f"{norm.path}/bias": 0, f"{norm.path}/alpha": 0}
    if norm.kind == "factor":
        values = {norm.path: 1, f"{norm.path}/scale": 1}
    elif norm.kind == "affine":
        # DyT's alpha is inside its tanh and stays.
        del values[f"{norm.path}/alpha"]
    else:
        # 1 - epsilon as the variance's own dtype has it: in a float64 network the gain takes the rest.
        var = float(np.asarray(1 - norm.epsilon).astype(leaves.value(f"{state}/var").dtype))
        gain = (var + norm.epsilon) ** 0.5
        values |= {f"{norm.path}/scale": gain - norm.scale_offset, f"{state}/mean": 0, f"{state}/var": var}
    known = {path: leaves.get(path) for path in values if leaves.has(path)}
    return {path: namespace(leaf).full_like(leaf, values[path]) for path, leaf in known.items()}


def _layer_of(leaves: Leaves, layer: Layer) -> tuple[Any, Any]:
    return leaves.get(layer.kernel_path), leaves.get(layer.bias_path)


def _stored(leaves: Leaves, layer: Layer, kernel: Any, bias: Any) -> Changes:
    changes = {layer.kernel_path: kernel}
    if bias is not None and (leaves.has(layer.bias_path) or not is_zero(bias)):
        changes[layer.bias_path] = bias
    return changes


def _stacked(fn: Any, count: int, *arrays: Any) -> Any:
    """`fn` over the leading axes of arrays, of which some may be `None`."""
    if count == 0:
        return fn(*arrays)
    xp = namespace(*(a for a in arrays if a is not None))
    size = next(a.shape[0] for a in arrays if a is not None)
    each = [_stacked(fn, count - 1, *(None if a is None else a[i] for a in arrays)) for i in range(size)]
    return tuple(None if part[0] is None else xp.stack(part) for part in zip(*each, strict=True))


def _before(leaves: Leaves, edge: Edge) -> Changes:
    scale, shift = _affine(leaves, edge.norms[0])
    changes = _identity(leaves, edge.norms[0])
    for layer in edge.layers:

        def one(kernel, bias, scale, shift, layer=layer):
            scale, shift = (v if v is None else _repeated(v, layer, kernel) for v in (scale, shift))
            shift = shift if shift is None or layer.input_scale == 1 else shift * layer.input_scale
            axes = {"in_axes": layer.in_axes, "out_axes": layer.out_axes, "groups": layer.groups}
            return rules.affine_before(kernel, bias, scale, shift, **axes)

        changes |= _stored(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer), scale, shift))
    return changes


def _repeated(vector: Any, layer: Layer, kernel: Any) -> Any:
    """A norm's vector on the layer's input axes: repeated for heads, reshaped where several axes are features."""
    vector = vector if layer.repeats == 1 else namespace(vector).tile(vector, layer.repeats)
    shape = tuple(kernel.shape[a] for a in layer.in_axes)
    if vector.ndim == 0:
        # ScaleNorm's one number for all features.
        vector = namespace(vector).tile(vector, layer.groups * int(np.prod(shape)))
    return vector.reshape(shape) if layer.groups == 1 and vector.size == int(np.prod(shape)) else vector


def _after(leaves: Leaves, edge: Edge) -> Changes:
    scale, shift = _affine(leaves, edge.norms[0])
    changes = _identity(leaves, edge.norms[0])
    for layer in edge.layers:

        def one(kernel, bias, scale, shift, layer=layer):
            return rules.affine_after(kernel, bias, scale, shift, out_axes=layer.out_axes)

        changes |= _stored(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer), scale, shift))
    return changes


def _query_key(leaves: Leaves, edge: Edge) -> Changes:
    query, key = (_affine(leaves, norm)[0] for norm in edge.norms)
    options = {"rotated": edge.rotated, "interleaved": edge.interleaved, "kv_heads": edge.kv_heads}
    merged = _stacked(lambda q, k: gains.qk_gains(q, k, **options), edge.stacked, query, key)
    return {f"{n.path}/scale": value - n.scale_offset for n, value in zip(edge.norms, merged, strict=True)}


def _center(leaves: Leaves, edge: Edge) -> Changes:
    changes: Changes = {}
    for layer in edge.layers:
        one = lambda kernel, bias, layer=layer: centre.center_out(kernel, bias, out_axes=layer.out_axes)  # noqa: E731
        changes |= _stored(leaves, layer, *_stacked(one, edge.stacked, *_layer_of(leaves, layer)))
    return changes


_CHANGES = {"before": _before, "after": _after, "query-key": _query_key, "center": _center}
