"""Configurations of the library's transformers as JSON: norms by their factories, placements by their steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp

import normjax.norms
import normjax.weights
from normjax._method import made
from normjax.fold._rebuild import IDENTITY
from normjax.models import AttentionKind, LinearScaling, Llama3Scaling, Rope, TransformerConfig, resnet_presets
from normjax.placements import Placement, Step
from normjax.precision import OutputRule, Precision
from normjax.transform import NormTransform
from normjax.weights import WeightTransform

# They matter to a new model only, not to one whose values are stored.
_INITIALIZERS = ("kernel_init", "scale_init", "bias_init")
_DTYPES = ("statistics", "output", "parameters")
_SCALINGS = {"LinearScaling": LinearScaling, "Llama3Scaling": Llama3Scaling}
_FUNCTIONS = {"jax.nn": jax.nn, "jax.numpy": jnp, "normjax.models.resnet_presets": resnet_presets}


def config_to_json(config: TransformerConfig) -> dict[str, Any]:
    """What JSON can hold of a configuration; initializers are left out."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _INITIALIZERS}
    place = config.placement
    kinds = ("attention", "ffn")
    steps = [[dataclasses.asdict(place.step(k, d, config.layers)) for k in kinds] for d in range(1, config.layers + 1)]
    placed = {"norm": norm_to_json(place.norm), "steps": steps}
    placed |= {name: getattr(place, name) for name in ("embedding", "final", "streams", "parallel", "gate_init")}
    return fields | {
        "placement": placed,
        "kinds": [_kind(kind) for kind in config.kinds],
        "activation": function_to_json(config.activation),
        "qk_norm": None if config.qk_norm is None else norm_to_json(config.qk_norm),
        "dtype": dtype_to_json(config.dtype),
        "param_dtype": dtype_to_json(config.param_dtype),
    }


def config_from_json(tree: Mapping[str, Any]) -> TransformerConfig:
    """The configuration that `config_to_json` wrote."""
    placed = dict(tree["placement"])
    norm, steps = norm_from_json(placed.pop("norm")), [[Step(**step) for step in pair] for pair in placed.pop("steps")]

    def rule(kind: str, depth: int, layers: int) -> Step:
        del layers
        return steps[depth - 1][("attention", "ffn").index(kind)]

    kinds = tuple(AttentionKind(**{**kind, "rope": _rope(kind["rope"])}) for kind in tree["kinds"])
    values = {
        "placement": Placement(norm, rule, **placed),
        "kinds": kinds,
        "activation": function_from_json(tree["activation"]),
        "qk_norm": None if tree["qk_norm"] is None else norm_from_json(tree["qk_norm"]),
        "dtype": dtype_from_json(tree["dtype"]),
        "param_dtype": dtype_from_json(tree["param_dtype"]),
    }
    return TransformerConfig(**{**tree, **values})


def _kind(kind: AttentionKind) -> dict[str, Any]:
    fields = dataclasses.asdict(kind)
    scaling = None if kind.rope is None else kind.rope.scaling
    if scaling is not None:
        name = type(scaling).__name__
        if _SCALINGS.get(name) is not type(scaling):
            raise ValueError(
                f"the scaling {scaling!r} of a rotation is none of {', '.join(_SCALINGS)}: it cannot be stored."
            )
        fields["rope"]["scaling"] = {"name": name, "fields": fields["rope"]["scaling"]}
    return fields


def _rope(tree: Mapping[str, Any] | None) -> Rope | None:
    if tree is None:
        return None
    scaling = tree["scaling"]
    made_again = None if scaling is None else _SCALINGS[scaling["name"]](**scaling["fields"])
    return Rope(**{**tree, "scaling": made_again})


def dtype_to_json(dtype: Any) -> str | None:
    """The name of a dtype."""
    return None if dtype is None else jnp.dtype(dtype).name


def dtype_from_json(name: str | None) -> Any:
    """The dtype of a name."""
    return None if name is None else jnp.dtype(name)


def norm_to_json(norm: NormTransform) -> dict[str, Any]:
    """A norm by the name and the arguments of its factory."""
    if norm == IDENTITY:
        return {"factory": None, "arguments": {}}
    return _made_to_json(norm, normjax.norms, "norm")


def weights_to_json(weights: WeightTransform) -> dict[str, Any]:
    """A reparametrization likewise."""
    return _made_to_json(weights, normjax.weights, "reparametrization")


def _made_to_json(transform: Any, room: Any, what: str) -> dict[str, Any]:
    told = made(transform)
    if told is None or getattr(room, told.name, None) is not told.factory:
        raise ValueError(f"a composed or hand-written {what} cannot be stored; keep its configuration in code.")
    arguments = {name: value for name, value in told.given.items() if name not in _INITIALIZERS}
    return {"factory": told.name, "arguments": {name: _argument(name, value) for name, value in arguments.items()}}


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, Precision):
        fields = dataclasses.asdict(value)
        return {
            "precision": {k: v if isinstance(v, str | bool | None) else jnp.dtype(v).name for k, v in fields.items()}
        }
    if isinstance(value, NormTransform):
        return {"norm": norm_to_json(value)}
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, int | float | str | None):
        return value
    raise ValueError(f"the argument {name}={value!r} of a norm cannot be stored as JSON.")


def norm_from_json(tree: Mapping[str, Any]) -> NormTransform:
    """The norm that `norm_to_json` wrote."""
    return IDENTITY if tree["factory"] is None else _made_from_json(tree, normjax.norms, "norm")


def weights_from_json(tree: Mapping[str, Any]) -> WeightTransform:
    """The reparametrization that `weights_to_json` wrote."""
    return _made_from_json(tree, normjax.weights, "reparametrization")


def _made_from_json(tree: Mapping[str, Any], room: Any, what: str) -> Any:
    factory = getattr(room, tree["factory"], None)
    if not hasattr(factory, "method"):
        raise ValueError(f"{tree['factory']!r} is no {what} of this version of normjax.")
    assert factory is not None
    return factory(**{name: _value(value) for name, value in tree["arguments"].items()})


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _precision(value["precision"]) if "precision" in value else norm_from_json(value["norm"])
    return tuple(value) if isinstance(value, list) else value


def _precision(fields: Mapping[str, Any]) -> Precision:
    words = {*get_args(OutputRule), None}
    dtypes = {name: jnp.dtype(v) for name, v in fields.items() if name in _DTYPES and v not in words}
    return Precision(**{**fields, **dtypes})


def function_to_json(fn: Callable[..., Any]) -> dict[str, Any]:
    """A function by its module, name and given arguments."""
    inner, arguments = (fn.func, fn.keywords) if isinstance(fn, functools.partial) and not fn.args else (fn, {})
    name = getattr(inner, "__name__", "")
    for module, namespace in _FUNCTIONS.items():
        if getattr(namespace, name, None) is inner:
            return {"module": module, "name": name, "arguments": arguments}
    raise ValueError(f"the activation {fn!r} is no function of {', '.join(_FUNCTIONS)}, and cannot be stored.")


def function_from_json(tree: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that `function_to_json` wrote."""
    found = getattr(_FUNCTIONS[tree["module"]], tree["name"])
    return functools.partial(found, **tree["arguments"]) if tree["arguments"] else found
