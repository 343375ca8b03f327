"""Plans for the library's models, and folded models that run."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.fold import _networks, _transformers, baking
from normjax.fold._rebuild import bare, filled, marked, rebuilt
from normjax.fold.apply import Dtype, Report, apply
from normjax.fold.plan import Edge, Plan, Refusal
from normjax.models import LanguageModel, MLPClassifier, ResNet
from normjax.models.transformer import TransformerConfig
from normjax.optim._paths import boxed_leaves

Model = _transformers.Model | ResNet | MLPClassifier


def plan_for(model: Model, *, untie: bool = False) -> Plan:
    """The plan of one of the library's models: every norm of it is folded or refused.

    Transformers (stack, language model, encoder, ViT) in any placement: what precedes a sublayer folds into its first
    matrices, a norm inside it into its last, LayerScale into its last, the norms of queries and keys into one, the
    final norm into an untied head. Refused with their reasons: output norms and norms on the residual stream (Post-LN,
    Peri-LN, sandwiches), tied heads, norms that depend on a condition or have no gain, unequal gains before a rotation.

    ResNet and MLP classifier: norms with running statistics fold into the layer before them, shortcuts included, and of
    IBN and BCN the half that has them. Refused: norms with statistics of each input (group, layer, instance norm,
    EvoNorm), those before a preactivated block, and what follows an addition.

    Args:
      model: The model; gains of queries and keys are looked at.
      untie: Whether a tied head may become a matrix of its own, of `vocabulary * features` more parameters.

    Returns:
      The plan, with paths of `nnx.state(model)`; for a ResNet with reparametrized kernels those of `bake_model(model)`.

    Raises:
      TypeError: If the model is none of the library's; write a `Plan` by hand.

    Example:
      >>> import normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.llama(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, rngs=nnx.Rngs(0))
      >>> plan = fold.plan_for(model)
      >>> [edge.name for edge in plan.edges], plan.refusals[0].path
      (['stack/blocks/0/attention/before', 'stack/blocks/0/ffn/before'], 'stack/final_norm')
    """
    edges: list[Edge] = []
    refusals: list[Refusal] = []
    for found in _found(model, untie):
        (edges if isinstance(found, Edge) else refusals).append(found)  # pyright: ignore[reportArgumentType]
    return Plan(tuple(edges), tuple(refusals))


def _found(model: Model, untie: bool) -> Iterator[Edge | Refusal]:
    if isinstance(model, ResNet):
        return _networks.of_resnet(model)
    if isinstance(model, MLPClassifier):
        return _networks.of_mlp(model)
    if isinstance(model, _transformers.Model):
        return _transformers.found(model, untie)
    raise TypeError(
        "plan_for knows Transformer, LanguageModel, Encoder, ViT, ResNet and MLPClassifier, got "
        f"{type(model).__name__}; write a Plan by hand."
    )


def fold_model(
    model: Model,
    plan: Plan | None = None,
    *,
    drop: bool = False,
    untie: bool = False,
    dtype: Dtype = "float64",
    keep_dtype: bool = True,
) -> tuple[Any, Report]:
    """Folds one of the library's models and builds the model that runs the result.

    Biases that shifts need are made: the new configuration has `use_bias=True` (other biases are 0) or the head a bias.
    LayerScale leaves no factor behind, reparametrized convolutions become plain ones (`bake_model`).

    Args:
      model: The trained model; it is not changed.
      plan: The plan; `None` for `plan_for(model, untie=untie)`.
      drop: Whether the norms lose their parameters, and those with running statistics vanish, instead of staying as
        identities; only where the plan folds every norm of a kind. In a ResNet what was folded vanishes site by site.
      untie: As in `plan_for`.
      dtype, keep_dtype: As in `apply`.

    Returns:
      `(folded model, report)`. The model is in evaluation mode; its changed variables are marked `inference_only`,
      which optimizers refuse.

    Raises:
      TypeError: As in `plan_for`.
      ValueError: If an edge cannot be applied, or `drop` is asked for and norms were refused.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.gpt2(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> folded, report = fold.fold_model(model)
      >>> fold.verify(model, folded, jnp.array([[1, 2, 3]])).passed
      True
    """
    plan = plan_for(model, untie=untie) if plan is None else plan
    state, kernels = _state_of(model, untie, dtype)
    folded, report = apply(state, plan, dtype=dtype, keep_dtype=keep_dtype)
    values = boxed_leaves(folded.params)
    changed = marked(values) | set(kernels)
    if keep_dtype:
        values |= {path: baking.restored(values[path], kernel) for path, kernel in kernels.items()}
    target = rebuilt(model, **_changes(model, values, report, drop, untie))
    gone = tuple(_module(norm.path) for edge in report.applied if edge.rule != "query-key" for norm in edge.norms)
    new = filled(target, values, changed, gone)
    new.eval()
    return new, report


def _module(path: str) -> str:
    # Of PRepBN the second member is what stays.
    return path.removesuffix("/1")


def _state_of(model: Model, untie: bool, dtype: Dtype) -> tuple[nnx.State, dict[str, Any]]:
    """What the plan is applied to; where kernels were made for it, wide, also those that they were made of."""
    if isinstance(model, ResNet) and model.config.weights is not None:
        values, kernels = baking.unwrapped(model, dtype)
        return nnx.from_flat_state({tuple(path.split("/")): v for path, v in values.items()}), kernels
    state = nnx.state(model)
    if untie and isinstance(model, LanguageModel) and model.head is None:
        # On the host: the head is a copy that the fold changes, the embedding stays.
        table = np.asarray(model.embedding.embedding[...])
        state["head"] = nnx.State({"kernel": nnx.Param(jnp.asarray(table.T))})
    return state, {}


def _changes(model: Model, values: Mapping[str, Any], report: Report, drop: bool, untie: bool) -> dict[str, Any]:
    """What is new in the arguments of the folded model's constructor."""
    biases = bool(set(report.needs_bias) - {"head"})
    if isinstance(model, MLPClassifier):
        return ({"use_bias": True} if biases else {}) | ({"norm": None} if drop and _whole(report) else {})
    if isinstance(model, ResNet):
        config = dataclasses.replace(model.config, weights=None, use_bias=model.config.use_bias or biases)
        return {"config": _networks.without(config, _vanished(report), model.stages[0][0].depth) if drop else config}
    config = _transformers.stack_of(model).config
    config = _without_factors(dataclasses.replace(config, use_bias=config.use_bias or biases), values, report)
    changes: dict[str, Any] = {"config": bare(config, report) if drop else config}
    if isinstance(model, LanguageModel):
        changes |= {"tied": False} if untie else {}
        changes |= {"head_bias": True} if "head" in report.needs_bias else {}
    return changes


def _whole(report: Report) -> bool:
    """Whether every norm was folded; raises if not."""
    if report.refusals:
        kept = ", ".join(refusal.path for refusal in report.refusals)
        raise ValueError(f"drop=True needs every norm folded, but {kept} stay; leave drop out.")
    return True


def _vanished(report: Report) -> set[str]:
    """Norms of which nothing is left: not those of which another half stays."""
    halves = {refusal.path.rpartition("/")[0] for refusal in report.refusals if refusal.path[-2:] in ("/0", "/1")}
    return {_module(norm.path) for edge in report.applied for norm in edge.norms} - halves - {f"{h}/0" for h in halves}


def _without_factors(config: TransformerConfig, paths: Mapping[str, Any], report: Report) -> TransformerConfig:
    """The configuration without LayerScale's factors, where all of them were folded."""
    factors = {edge.norms[0].path for edge in report.applied if edge.rule == "after"}
    if not factors or factors != {path for path in paths if path.endswith("/gate")}:
        return config
    place = config.placement
    return dataclasses.replace(
        config,
        placement=dataclasses.replace(place, rule=lambda *a: dataclasses.replace(place.rule(*a), gate=None)),
    )
