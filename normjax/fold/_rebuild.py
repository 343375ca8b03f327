"""Models of another configuration with values of a given one."""

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from normjax._method import made
from normjax.fold.apply import Report
from normjax.models import LanguageModel, Transformer, ViT
from normjax.models.transformer import TransformerConfig
from normjax.transform import NormTransform, stateless


def rebuilt(model: Any, config: TransformerConfig, *, head_bias: bool | None = None, untie: bool = False) -> Any:
    """An abstract model like `model` with another configuration."""
    if isinstance(model, Transformer):
        return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    if isinstance(model, ViT):
        size, _, channels = model.shape
        patch, classes = model.patch_embedding.kernel_size, model.head.out_features
        sizes = {
            "image_size": size,
            "patch_size": patch[0],
            "classes": classes,
            "channels": channels,
            "pool": model.pool,
        }
        return nnx.eval_shape(lambda: ViT(config, **sizes, rngs=nnx.Rngs(0)))
    options = options_of(model)
    options |= {"tied": False} if untie else {}
    options |= {} if head_bias is None else {"head_bias": head_bias or options["head_bias"]}
    return nnx.eval_shape(lambda: LanguageModel(config, **options, rngs=nnx.Rngs(0)))


def options_of(model: LanguageModel) -> dict[str, Any]:
    """The arguments of a language model beside its configuration, as far as they outlive its initialization."""
    return {
        "vocabulary": model.embedding.num_embeddings,
        "tied": model.head is None,
        "head_bias": model.head is not None and model.head.bias is not None,
        "max_tokens": None if model.position_embedding is None else model.position_embedding.num_embeddings,
        "embedding_scale": model.embedding_scale,
        "logit_scale": model.logit_scale,
        "logit_softcap": model.logit_softcap,
    }


def filled(target: Any, values: Mapping[str, Any], marked: Collection[str] = (), gone: tuple[str, ...] = ()) -> Any:
    """The abstract model with values by path; biases that have none are 0, other leaves must be there.

    Args:
      target: The model that `rebuilt` made.
      values: Arrays or variables by path.
      marked: Paths of the variables to mark as for inference only.
      gone: Below which paths there may be values that the model has no place for.

    Returns:
      The model.
    """
    graph, state = nnx.split(target)
    flat = dict(nnx.to_flat_state(state))
    names = {"/".join(map(str, keys)) for keys in flat}
    lost = [p for p in values if p not in names and not any(p == g or p.startswith(f"{g}/") for g in gone)]
    if lost:
        raise ValueError(f"the folded model has no place for {lost}, which still hold something; leave out drop=True.")
    for keys, variable in flat.items():
        path, shape = "/".join(map(str, keys)), variable.get_value()
        if path in values:
            given = values[path]
            value = given.get_value() if isinstance(given, nnx.Variable) else given
            if tuple(value.shape) != tuple(shape.shape):
                raise ValueError(f"{path} has shape {tuple(value.shape)}, but the model expects {tuple(shape.shape)}.")
        elif keys[-1] == "bias":
            value = jnp.zeros(shape.shape, shape.dtype)
        else:
            raise ValueError(f"there is no value for {path} of the model.")
        flat[keys] = variable.replace(jnp.asarray(value))
        if path in marked:
            flat[keys].set_metadata(inference_only=True)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def bare(config: TransformerConfig, report: Report) -> TransformerConfig:
    """The configuration whose norms have lost what was folded."""
    if report.refusals:
        kept = ", ".join(refusal.path for refusal in report.refusals)
        raise ValueError(
            f"drop=True needs every norm folded, but {kept} stay; leave drop out, or fold them (untie=True)."
        )
    place = config.placement
    whole = any(norm.kind == "running" for edge in report.applied for norm in edge.norms)
    norm = IDENTITY if whole else without_parameters(place.norm)
    return dataclasses.replace(config, placement=dataclasses.replace(place, norm=norm))


def without_parameters(norm: NormTransform) -> NormTransform:
    """A norm without gain and bias."""
    told = made(norm)
    if told is None or not {"use_scale", "use_bias"} <= set(inspect.signature(told.factory).parameters):
        raise ValueError(
            f"drop=True: {'a composed transform' if told is None else told.name} cannot be made without its "
            "parameters; leave drop out."
        )
    return told.again(use_scale=False, use_bias=False)


# What a wholly folded norm leaves behind.
IDENTITY = stateless(lambda params, x, *, mask, **context: x)
