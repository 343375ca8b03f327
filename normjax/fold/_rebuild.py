"""Models of another configuration with values of a given one."""

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from normjax._method import made
from normjax.fold.apply import Report
from normjax.models import Encoder, LanguageModel, MLPClassifier, ResNet, Transformer, ViT
from normjax.models.transformer import TransformerConfig
from normjax.transform import NormTransform, stateless


def rebuilt(model: Any, **changes: Any) -> Any:
    """An abstract model like `model`, some arguments of its constructor changed."""
    arguments = arguments_of(model) | changes
    return nnx.eval_shape(lambda: type(model)(**arguments, rngs=nnx.Rngs(0)))


@functools.singledispatch
def arguments_of(model: Any) -> dict[str, Any]:
    """The arguments of a model's constructor, as far as they outlive its initialization."""
    raise TypeError(f"no {type(model).__name__} can be made again; expected one of {', '.join(_known())}.")


def _known() -> list[str]:
    return sorted(cls.__name__ for cls in arguments_of.registry if cls is not object)


@arguments_of.register
def _(model: Transformer) -> dict[str, Any]:
    return {"config": model.config}


@arguments_of.register
def _(model: LanguageModel) -> dict[str, Any]:
    return {
        "config": model.stack.config,
        "vocabulary": model.embedding.num_embeddings,
        "tied": model.head is None,
        "head_bias": model.head is not None and model.head.bias is not None,
        "max_tokens": _rows(model.position_embedding),
        "embedding_scale": model.embedding_scale,
        "logit_scale": model.logit_scale,
        "logit_softcap": model.logit_softcap,
    }


@arguments_of.register
def _(model: Encoder) -> dict[str, Any]:
    return {
        "config": model.stack.config,
        "vocabulary": model.embedding.num_embeddings,
        "max_tokens": _rows(model.position_embedding),
        "types": _rows(model.type_embedding),
        "pooler": model.pooler is not None,
        "masked_head": model.head is not None,
    }


@arguments_of.register
def _(model: ViT) -> dict[str, Any]:
    size, _, channels = model.shape
    return {
        "config": model.stack.config,
        "image_size": size,
        "patch_size": model.patch_embedding.kernel_size[0],
        "classes": model.head.out_features,
        "channels": channels,
        "pool": model.pool,
    }


@arguments_of.register
def _(model: ResNet) -> dict[str, Any]:
    return {"config": model.config, "classes": model.head.out_features, "channels": model.channels}


@arguments_of.register
def _(model: MLPClassifier) -> dict[str, Any]:
    first = model.hidden[0] if len(model.hidden) else model.head
    return {
        "features": first.in_features,
        "widths": tuple(layer.out_features for layer in model.hidden),
        "classes": model.head.out_features,
        "norm": model.norms[0].transform if len(model.norms) else None,
        "use_bias": len(model.hidden) > 0 and first.bias is not None,
        "activation": model.activation,
        "dtype": model.dtype,
        "param_dtype": model.head.param_dtype,
        "remat": model.remat,
    }


def _rows(embedding: nnx.Embed | None) -> int | None:
    return None if embedding is None else embedding.num_embeddings


def marked(values: Mapping[str, nnx.Variable]) -> set[str]:
    """The paths of variables that are for inference only."""
    return {path for path, variable in values.items() if variable.get_metadata().get("inference_only")}


def filled(
    target: Any, values: Mapping[str, Any], inference_only: Collection[str] = (), gone: tuple[str, ...] = ()
) -> Any:
    """The abstract model with values by path; biases that have none are 0, other leaves must be there.

    Args:
      target: The model that `rebuilt` made.
      values: Arrays or variables by path.
      inference_only: Paths of the variables to mark so.
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
        if path in inference_only:
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
