"""What becomes of each norm of the library's ResNet and MLP: it may go into the layer before it, and nowhere else.

An activation follows every norm of theirs, which keeps gains and biases from the layer after it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from normjax._method import Made, made
from normjax.fold import _sites
from normjax.fold.plan import Edge, Layer, NormAt, Refusal
from normjax.models import MLPClassifier, ResNet, ResNetConfig
from normjax.nnx import Norm

_OWN_STATISTICS = (
    "takes its statistics from each input, so that none of it goes into the layer before it; the activation keeps its "
    "gain and bias from the layer after it."
)
_STREAM = "it reads the residual stream, which other layers write and read too, and an activation follows it."
_JOINED = "it follows the addition of branch and shortcut: no single layer is before it, and none reads it alone."


def of_mlp(model: MLPClassifier) -> Iterator[Edge | Refusal]:
    """The norms of a classifier, each behind its hidden layer."""
    for index, norm in enumerate(model.norms):
        yield from _behind(norm, f"norms/{index}", f"hidden/{index}", model.hidden[index].out_features)


def of_resnet(model: ResNet) -> Iterator[Edge | Refusal]:
    """The norms of a residual network whose kernels are effective ones."""
    config = model.config
    if model.stem_norm is not None:
        yield from _behind(model.stem_norm, "stem_norm", "stem", config.widths[0])
    for stage, (blocks, plans) in enumerate(zip(model.stages, config.plans(), strict=True)):
        for index, (block, plan) in enumerate(zip(blocks, plans, strict=True)):
            yield from _of_block(block, plan, f"stages/{stage}/{index}", config)
    if model.final_norm is not None:
        yield Refusal("final_norm", _STREAM)


def _of_block(block: Any, plan: Any, path: str, config: ResNetConfig) -> Iterator[Edge | Refusal]:
    for number in range(1, block.depth + 1):
        norm, here = getattr(block, f"norm{number}"), f"{path}/norm{number}"
        if norm is None:
            continue
        last = number == block.depth
        if not block.preactivation:
            yield from _behind(norm, here, f"{path}/conv{number}", plan.outputs if last else plan.width)
        elif number > 1:
            yield from _behind(norm, here, f"{path}/conv{number - 1}", plan.width)
        elif _follows_the_stem(plan, config):
            yield from _behind(norm, here, "stem", plan.features)
        else:
            yield Refusal(here, _STREAM)
    if block.shortcut_norm is not None:
        yield from _behind(block.shortcut_norm, f"{path}/shortcut_norm", f"{path}/shortcut", plan.outputs)
    if block.joined_norm is not None:
        yield Refusal(f"{path}/joined_norm", _JOINED)


def _follows_the_stem(plan: Any, config: ResNetConfig) -> bool:
    """Whether the first norm of a preactivated network is all that reads the stem."""
    first = (plan.stage, plan.block) == (1, 1)
    return first and plan.projects and not config.stem.pool and config.residual_scale is None


def _behind(norm: Norm, path: str, layer: str, features: int) -> Iterator[Edge | Refusal]:
    for found in _parts(norm, path, features):
        yield found if isinstance(found, Refusal) else Edge("after", (found,), (Layer(layer),))


def _parts(norm: Norm, path: str, features: int) -> Iterator[NormAt | Refusal]:
    """The norm as a plan names it; the two halves of IBN and of BCN one by one."""
    told = made(norm.transform)
    if told is not None and told.name == "instance_batch_norm":
        yield Refusal(f"{path}/0", f"IBN's instance half {_OWN_STATISTICS}")
        state = getattr(norm, "1_state")
        yield _sites.running_at(told, f"{path}/1", f"{path}/1_state", features - state["mean"].shape[0])
    elif told is not None and told.name == "batch_channel_norm":
        batch = told.argument("batch")
        yield _batch_half(told if batch is None else made(batch), f"{path}/0")
        yield Refusal(f"{path}/1", f"BCN's group norm {_OWN_STATISTICS}")
    else:
        found = _sites.norm_at(norm, path)
        whole = isinstance(found, Refusal) or found.kind == "running"
        yield found if whole else Refusal(path, _why_not(told))


def _batch_half(told: Made | None, path: str) -> NormAt | Refusal:
    if told is None or told.name not in (*_sites.RUNNING, "batch_channel_norm"):
        return Refusal(path, "BCN's first norm has no running statistics that a plan knows; write the edge by hand.")
    return _sites.running_at(told, path, f"{path}_state")


def _why_not(told: Made | None) -> str:
    assert told is not None  # A composed transform has its own reason.
    if told.name.startswith("evo_norm"):
        return f"{told.name} has its activation inside: in evaluation it is no affine map of the layer before it."
    return f"{told.name} {_OWN_STATISTICS}"


def without(config: ResNetConfig, paths: set[str], depth: int) -> ResNetConfig:
    """The configuration without the norms at these paths, in a model whose branches have `depth` convolutions."""
    gone = {_site(path, depth, config.preactivation) for path in paths}
    return dataclasses.replace(
        config, norms=lambda site: None if (site.kind, site.stage, site.block) in gone else config.norm(site)
    )


def _site(path: str, depth: int, preactivation: bool) -> tuple[str, int, int]:
    if path == "stem_norm":
        return "stem", 0, 0
    _, stage, block, name = path.split("/")
    if name == "shortcut_norm":
        kind = "shortcut"
    else:
        number = int(name.removeprefix("norm"))
        kind = "first" if number == 1 else "last" if number == depth and not preactivation else "inner"
    return kind, int(stage) + 1, int(block) + 1
