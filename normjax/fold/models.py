"""Plans for the library's transformers, and folded models that run."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.fold import _sites
from normjax.fold._rebuild import bare, filled, rebuilt
from normjax.fold.apply import Dtype, Report, apply
from normjax.fold.plan import Edge, Layer, Plan, Refusal
from normjax.models import MLP, LanguageModel, Transformer, ViT
from normjax.models.transformer import Block, TransformerConfig
from normjax.optim._paths import boxed_leaves

Model = LanguageModel | Transformer | ViT


def plan_for(model: Model, *, untie: bool = False) -> Plan:
    """The plan of a transformer (stack, language model, ViT) in any placement: every norm of it is folded or refused.

    What precedes a sublayer folds into its first matrices, a norm inside it into its last, LayerScale into its last,
    the norms of queries and keys into one, the final norm into an untied head. Refused with their reasons: output
    norms and norms on the residual stream (Post-LN, Peri-LN, sandwiches), tied heads, norms that depend on a condition
    or have no gain, unequal gains before a rotation.

    Args:
      model: The model; gains of queries and keys are looked at.
      untie: Whether a tied head may become a matrix of its own, of `vocabulary * features` more parameters.

    Returns:
      The plan, with paths of `nnx.state(model)`.

    Raises:
      TypeError: If the model is none of the library's transformers; write a `Plan` by hand.

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
    if not isinstance(model, Model):
        raise TypeError(
            f"plan_for knows Transformer, LanguageModel and ViT, got {type(model).__name__}; write a Plan by hand."
        )
    edges: list[Edge] = []
    refusals: list[Refusal] = []
    for found in _found(model, untie):
        (edges if isinstance(found, Edge) else refusals).append(found)  # pyright: ignore[reportArgumentType]
    return Plan(tuple(edges), tuple(refusals))


def fold_model(
    model: Model,
    plan: Plan | None = None,
    *,
    drop: bool = False,
    untie: bool = False,
    dtype: Dtype = "float64",
    keep_dtype: bool = True,
) -> tuple[Any, Report]:
    """Folds a transformer and builds the model that runs the result.

    Biases that shifts need are made: the new configuration has `use_bias=True` (other biases are 0) or the head a bias.
    LayerScale leaves no factor behind.

    Args:
      model: The trained model; it is not changed.
      plan: The plan; `None` for `plan_for(model, untie=untie)`.
      drop: Whether the norms lose their parameters, and those with running statistics vanish, instead of staying as
        identities; only where the plan folds every norm of a kind.
      untie: As in `plan_for`.
      dtype, keep_dtype: As in `apply`.

    Returns:
      `(folded model, report)`. Its changed variables are marked `inference_only`, which optimizers refuse.

    Raises:
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
    state = nnx.state(model)
    if untie and isinstance(model, LanguageModel) and model.head is None:
        # On the host: the head is a copy that the fold changes, the embedding stays.
        table = np.asarray(model.embedding.embedding[...])
        state["head"] = nnx.State({"kernel": nnx.Param(jnp.asarray(table.T))})
    folded, report = apply(state, plan, dtype=dtype, keep_dtype=keep_dtype)
    config = _stack(model).config
    head_bias = "head" in report.needs_bias
    if set(report.needs_bias) - {"head"}:
        config = dataclasses.replace(config, use_bias=True)
    values = boxed_leaves(folded.params)
    config = _without_factors(config, values, report)
    if drop:
        config = bare(config, report)
    target = rebuilt(model, config, head_bias=head_bias, untie=untie)
    changed = {p for p, v in values.items() if v.get_metadata().get("inference_only")}
    gone = tuple(
        norm.path.removesuffix("/1") for edge in report.applied if edge.rule != "query-key" for norm in edge.norms
    )
    return filled(target, values, changed, gone), report


def _stack(model: Model) -> Transformer:
    return model if isinstance(model, Transformer) else model.stack


def _without_factors(config: TransformerConfig, paths: Collection[str], report: Report) -> TransformerConfig:
    """The configuration without LayerScale's factors, where all of them were folded."""
    factors = {edge.norms[0].path for edge in report.applied if edge.rule == "after"}
    if not factors or factors != {path for path in paths if path.endswith("/gate")}:
        return config
    place = config.placement
    return dataclasses.replace(
        config,
        placement=dataclasses.replace(place, rule=lambda *a: dataclasses.replace(place.rule(*a), gate=None)),
    )


def _found(model: Model, untie: bool) -> Iterator[Edge | Refusal]:
    stack, prefix = _stack(model), "" if isinstance(model, Transformer) else "stack/"
    place = stack.config.placement
    if stack.embedding_norm is not None:
        yield Refusal(f"{prefix}embedding_norm", "its output is the residual stream itself, which norms and sums read.")
    for index, (block, scanned) in enumerate(zip(stack.blocks, stack._lengths(), strict=True)):
        yield from _of_block(block, f"{prefix}blocks/{index}", stack.config, 1 if scanned else 0)
    final = f"{prefix}final_norm"
    if stack.final_norm is None:
        return
    if place.streams != "one":
        yield Refusal(final, "its output is added to another stream, not read by a linear layer.")
        if stack.second_norm is not None:
            yield Refusal(f"{prefix}second_norm", "its output is added to another stream, not read by a linear layer.")
    elif isinstance(model, Transformer):
        yield Refusal(final, "its output is the stack's: no consumer is known.")
    elif model.head is None and not untie:
        yield Refusal(
            final,
            "the head is the embedding's transpose, which the fold would change; untie=True makes a head of its own.",
        )
    else:
        yield _sites.before(stack.final_norm, final, (Layer("head"),))


def _of_block(block: Block, path: str, config: TransformerConfig, stacked: int) -> Iterator[Edge | Refusal]:
    gated = isinstance(block.ffn.branch, MLP) and block.ffn.branch.gate is not None
    readers = {
        "attention": tuple(Layer(f"{path}/attention/branch/{name}") for name in ("query", "key", "value")),
        "ffn": tuple(Layer(f"{path}/ffn/branch/{name}") for name in (("gate", "up") if gated else ("up",))),
    }
    for name in ("attention", "ffn"):
        residual, here = getattr(block, name), f"{path}/{name}"
        last = Layer(f"{here}/branch/{'out' if name == 'attention' else 'down'}")
        layers = readers[name]
        if block.parallel and name == "attention":
            layers = (*layers, *readers["ffn"])
        yield from _sites.around(residual, here, layers, last, block.streams, stacked)
        if name == "attention":
            yield from _sites.inside_attention(residual.branch, f"{here}/branch", last, stacked)
        if residual.branch.inner_norm is not None:
            yield _sites.before(residual.branch.inner_norm, f"{here}/branch/inner_norm", (last,), stacked)
