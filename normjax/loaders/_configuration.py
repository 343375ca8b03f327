"""What all readers of a foreign config.json share: activations, rotations, and what must not be passed over."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from normjax.loaders.rules import Table
from normjax.models import AttentionKind, LinearScaling, Llama3Scaling, Rope, TransformerConfig

HuggingFace = Mapping[str, Any]
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Plan(NamedTuple):
    """What a foreign configuration asks for.

    Attributes:
      model: Class of the model.
      config: Of its stack.
      options: Its other arguments.
      table: Where each of its parameters is.
      prefix: Of the names of the base model, which a file of the base model alone leaves out.
      copies: Tensors that repeat another one, where they are written out.
    """

    model: type[Any]
    config: TransformerConfig
    options: dict[str, Any]
    table: Table
    prefix: str
    copies: dict[str, str]


def require(hf: HuggingFace, *names: str) -> dict[str, Any]:
    """The entries of these names."""
    if missing := [name for name in names if hf.get(name) is None]:
        raise ValueError(f"the configuration of a {hf.get('model_type')!r} has no {', '.join(missing)}: {sorted(hf)}.")
    return {name: hf[name] for name in names}


def refuse_unless(hf: HuggingFace, **expected: Any) -> None:
    """Raises unless each entry that is there has the one value that is supported, or is null."""
    for name, value in expected.items():
        if hf.get(name) not in (None, value):
            raise ValueError(
                f"{name}={hf[name]!r} of a {hf.get('model_type')!r} is not supported, only {value!r} is: the model "
                "would compute something else."
            )


def activation(hf: HuggingFace, *names: str, default: str) -> Callable[[jax.Array], jax.Array]:
    """The activation under the first of these names that is there."""
    name = next((hf[n] for n in names if hf.get(n) is not None), default)
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; expected one of {sorted(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def rope(hf: HuggingFace, theta: float, layer: str | None = None) -> Rope:
    """The rotation, or that of one type of layers, whose default base is `theta`; read as versions 4 and 5 write it."""
    found: dict[str, Any] = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    if layer is not None and layer in found:
        found = dict(found[layer])
    if any(isinstance(value, Mapping) for value in found.values()):
        raise ValueError(f"the rotation differs between types of layers, which this model does not have: {found}.")
    theta = found.get("rope_theta") or hf.get("rope_theta") or theta
    fraction = found.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    return Rope(theta, fraction=fraction, scaling=_scaling(found))


def _scaling(found: dict[str, Any]) -> LinearScaling | Llama3Scaling | None:
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(found["factor"])
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Llama3Scaling(*(found[name] for name in names))
    raise ValueError(f"rotations scaled by {kind!r} are not supported, only 'default', 'linear' and 'llama3': {found}.")


def kinds(
    hf: HuggingFace, window: int | None, types: tuple[str, ...], rotation: Callable[[str], Rope]
) -> tuple[AttentionKind, ...]:
    """The attention of each layer, from `layer_types` or, where it is missing, from what repeats in `types`."""
    layers = hf["num_hidden_layers"]
    named = hf.get("layer_types") or [types[i % len(types)] for i in range(layers)]
    if unknown := set(named) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layers of type {sorted(unknown)} are not supported, only full and sliding attention.")
    if "sliding_attention" in named and window is None:
        raise ValueError("layer_types names sliding attention, but there is no sliding_window.")
    reach = {"full_attention": None, "sliding_attention": window}
    return tuple(AttentionKind(window=reach[name], rope=rotation(name)) for name in named)
