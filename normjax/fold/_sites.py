"""What may become of a norm, by where it stands in a block of the library's transformers."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import nnx

from normjax._method import made
from normjax.fold._edges import obstacle
from normjax.fold.plan import Edge, Layer, NormAt, Refusal
from normjax.models import Attention
from normjax.models.residual import Residual
from normjax.nnx import Norm
from normjax.optim._paths import boxed_leaves

# The methods whose evaluation is one affine map of running statistics that `running_affine` knows.
RUNNING = ("batch_norm", "estimated_batch_norm", "rep_batch_norm", "prep_batch_norm", "unified_norm")
_STREAM = "its output is the residual stream, or is added to it: the gain has no linear layer to go into"


def norm_at(norm: Norm, path: str) -> NormAt | Refusal:
    """The norm of an nnx module as a plan names it, or why it does not fold wherever it stands."""
    told = made(norm.transform)
    if told is None:
        return Refusal(
            path, "a composed or hand-written transform does not say what it computes; write the edge by hand."
        )
    if told.method.context:
        return Refusal(path, f"{told.name} takes its gain from a condition ({', '.join(told.method.context)}).")
    if told.method.folds == "none":
        return Refusal(path, f"{told.name} has neither a gain of its own nor fixed statistics.")
    if told.name in RUNNING:
        return _running(norm, path, told)
    leaves = boxed_leaves(nnx.state(norm))
    if "scale" not in leaves and "bias" not in leaves:
        return Refusal(path, f"{told.name} has no gain and no bias here: nothing is to be folded.")
    if any(told.argument(name) not in (None, -1) for name in ("axis", "feature_axes")):
        return Refusal(path, f"{told.name} has its gain on other axes than the last; write the edge by hand.")
    return NormAt(path, scale_offset=told.argument("scale_offset", 0.0))


def _running(norm: Norm, path: str, told: Any) -> NormAt | Refusal:
    if told.name != "prep_batch_norm":
        return running_at(told, path)
    schedule: Any = norm
    if int(schedule.weights_state["iter"][...].max()) > 0:
        return Refusal(path, "the schedule of PRepBN has not reached its end: training still mixes in the token norm.")
    return running_at(told, f"{path}/1", f"{path}/1_state")


def running_at(told: Any, path: str, state: str | None = None, skips: int = 0) -> NormAt | Refusal:
    """A norm with running statistics, made with these arguments, whose features are the layer's last."""
    if told.argument("debias") or any(told.argument(n, -1) != -1 for n in ("feature_axes", "feature_axis")):
        return Refusal(path, f"{told.name} with debias or other feature axes is not in the plan; see running_affine.")
    return NormAt(path, "running", state, told.argument("epsilon", 1e-5), skips=skips)


def before(norm: Norm, path: str, layers: tuple[Layer, ...], stacked: int = 0) -> Edge | Refusal:
    """The edge of a norm that only these layers read."""
    found = norm_at(norm, path)
    return found if isinstance(found, Refusal) else Edge("before", (found,), layers, stacked)


def around(
    residual: Residual, path: str, readers: tuple[Layer, ...], last: Layer, streams: str, stacked: int
) -> Iterator[Edge | Refusal]:
    """The norms and the gate of one residual step."""
    step = residual.step
    if residual.before is not None:
        place = f"{path}/before"
        if step.residual:
            yield Refusal(place, "its output is the residual too, not read by linear layers alone.")
        elif streams == "siamese":
            yield Refusal(place, "its output is added to that of another norm before the linear layers.")
        else:
            layers = tuple(dataclasses.replace(layer, input_scale=step.input_scale) for layer in readers)
            yield before(residual.before, place, layers, stacked)
    for name in ("output", "after"):
        if getattr(residual, name) is not None:
            yield Refusal(f"{path}/{name}", f"{_STREAM} ({'Post-LN' if name == 'after' else 'Peri-LN, sandwich'}).")
    if step.gate == "layer_scale" and residual.output is None:
        yield Edge("after", (NormAt(f"{path}/gate", "factor"),), (last,), stacked)
    elif step.gate is not None:
        yield Refusal(f"{path}/gate", "the gate weighs the residual as well as the branch.")


def inside_attention(attention: Attention, path: str, out: Layer, stacked: int) -> Iterator[Edge | Refusal]:
    """The norms of queries, keys and values."""
    if attention.value_norm is not None:
        if attention.inner_norm is not None:
            yield Refusal(f"{path}/value_norm", "another norm stands between the values and the output matrix.")
        else:
            layer = dataclasses.replace(out, repeats=attention.heads)
            yield before(attention.value_norm, f"{path}/value_norm", (layer,), stacked)
    if attention.query_norm is None or attention.key_norm is None:
        return
    places = (f"{path}/query_norm", f"{path}/key_norm")
    found = [norm_at(n, p) for n, p in zip((attention.query_norm, attention.key_norm), places, strict=True)]
    refused = [f for f in found if isinstance(f, Refusal)]
    if refused:
        yield from refused
        return
    norms = tuple(f for f in found if isinstance(f, NormAt))
    edge = Edge("query-key", norms, (), stacked, **_rotation(attention))
    reason = _unmergeable(attention, edge)
    yield edge if reason is None else Refusal(f"{path}/key_norm", reason)


def _rotation(attention: Attention) -> dict[str, Any]:
    rope, whole = attention.kind.rope, attention.qk_norm_over == "projection"
    heads = {"kv_heads": attention.kv_heads if whole else 1}
    if rope is None or attention.qk_norm_after_rope:
        return heads
    rotated = int(rope.fraction * attention.head_features) // 2 * 2
    return heads | {"rotated": rotated, "interleaved": rope.interleaved}


def _unmergeable(attention: Attention, edge: Edge) -> str | None:
    """Why the gains of this attention do not go into one; their values decide behind a rotation."""
    return obstacle(nnx.state(attention), dataclasses.replace(edge, norms=_local(edge)))


def _local(edge: Edge) -> tuple[NormAt, ...]:
    return tuple(dataclasses.replace(norm, path=norm.path.rpartition("/")[2]) for norm in edge.norms)
