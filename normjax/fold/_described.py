"""Any of the library's models as JSON and back to an abstract model, norms by their factories."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from normjax import models
from normjax.fold import _config
from normjax.fold._rebuild import arguments_of, rebuilt
from normjax.models import MLPClassifier, ResNet, ResNetConfig
from normjax.models.resnet_layers import Site

KINDS = ("LanguageModel", "Encoder", "ViT", "ResNet", "MLPClassifier")


def to_json(model: Any) -> dict[str, Any]:
    """What JSON can hold of a model beside its parameters: `config` and the other arguments of its class, `model`."""
    arguments = arguments_of(model)
    if isinstance(model, MLPClassifier):
        written = {name: write(arguments[name]) for name, (write, _) in _CLASSIFIER.items()}
        return {"model": arguments | written, "config": {}}
    config = arguments.pop("config")
    write = _resnet_to_json if isinstance(model, ResNet) else lambda _, c: _config.config_to_json(c)
    return {"model": arguments, "config": write(model, config)}


def from_json(kind: str, tree: Mapping[str, Any]) -> Any:
    """The abstract model of a class that `to_json` described."""
    arguments = dict(tree["model"])
    if kind == "MLPClassifier":
        arguments |= {name: read(arguments[name]) for name, (_, read) in _CLASSIFIER.items()}
    else:
        arguments["config"] = (
            _resnet_from_json(tree["config"]) if kind == "ResNet" else _config.config_from_json(tree["config"])
        )
    return nnx.eval_shape(lambda: getattr(models, kind)(**arguments, rngs=nnx.Rngs(0)))


def _optional(write: Any, read: Any) -> tuple[Any, Any]:
    return lambda value: None if value is None else write(value), lambda value: None if value is None else read(value)


_NORM = _optional(_config.norm_to_json, _config.norm_from_json)
_DTYPE = (_config.dtype_to_json, _config.dtype_from_json)
_FUNCTION = (_config.function_to_json, _config.function_from_json)
_CLASSIFIER = {"norm": _NORM, "activation": _FUNCTION, "dtype": _DTYPE, "param_dtype": _DTYPE}
_RESNET = {
    "activation": _FUNCTION,
    "weights": _optional(_config.weights_to_json, _config.weights_from_json),
    "dtype": _DTYPE,
    "param_dtype": _DTYPE,
    "stem": (list, lambda sizes: models.Stem(*sizes)),
    "depths": (list, tuple),
    "widths": (list, tuple),
}


def _resnet_to_json(model: ResNet, config: ResNetConfig) -> dict[str, Any]:
    sites: dict[tuple[str, int, int], Any] = {}

    def asked(site: Site) -> Any:
        sites[site.kind, site.stage, site.block] = config.norm(site)
        return config.norm(site)

    # The model itself says which sites there are.
    rebuilt(model, config=dataclasses.replace(config, norms=asked))
    norms = list(dict.fromkeys(norm for norm in sites.values() if norm is not None))
    places = [[*site, None if norm is None else norms.index(norm)] for site, norm in sites.items()]
    skipped = ("norms", "kernel_init")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in skipped}
    written = {name: write(fields[name]) for name, (write, _) in _RESNET.items()}
    return fields | written | {"norms": [_config.norm_to_json(norm) for norm in norms], "sites": places}


def _resnet_from_json(tree: Mapping[str, Any]) -> ResNetConfig:
    fields = dict(tree)
    norms, sites = [_config.norm_from_json(norm) for norm in fields.pop("norms")], fields.pop("sites")
    table = {tuple(site): None if index is None else norms[index] for *site, index in sites}
    fields |= {name: read(fields[name]) for name, (_, read) in _RESNET.items()}
    return ResNetConfig(norms=lambda site: table[site.kind, site.stage, site.block], **fields)
