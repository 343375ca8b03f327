"""Models of foreign tensors and foreign tensors of models: pure functions of dicts, strict in both directions."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.loaders import bert, decoders, gpt2, vit
from normjax.loaders._configuration import HuggingFace, Plan
from normjax.loaders._matching import check, foreign_shape, matched
from normjax.loaders._stacking import stacked, unstacked
from normjax.loaders.rules import Arrays, Table, at_every, to_ours, to_theirs
from normjax.models import TransformerConfig

# By the name that a config.json gives itself.
_PLANS: dict[str, Callable[[HuggingFace], Plan]] = {
    "bert": bert.plan,
    "gemma2": decoders.gemma2,
    "gemma3_text": decoders.gemma3,
    "gpt2": gpt2.plan,
    "llama": decoders.llama,
    "olmo2": decoders.olmo2,
    "qwen3": decoders.qwen3,
    "vit": vit.plan,
}


def config_from_hf(hf: HuggingFace) -> tuple[TransformerConfig, dict[str, Any]]:
    """The configuration of our model for a Hugging Face one.

    Args:
      hf: What its config.json holds.

    Returns:
      The configuration of the stack, and the other arguments of `LanguageModel` (BERT: `Encoder`, ViT: `ViT`).

    Raises:
      ValueError: If the model or one of its settings is not supported, or a size is missing.

    Example:
      >>> import normjax as nj
      >>> hf = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 11}
      >>> config, options = nj.loaders.config_from_hf(hf)
      >>> config.hidden, options
      (32, {'vocabulary': 11, 'max_tokens': 16})
    """
    plan = _plan(hf)
    return plan.config, plan.options


def from_hf(
    tensors: Mapping[str, Any], hf: HuggingFace, *, param_dtype: Any = None, ignore: Sequence[str] = (), **changes: Any
) -> Any:
    """The model with these parameters.

    Args:
      tensors: Hugging Face's arrays by their names.
      hf: What its config.json holds.
      param_dtype: Dtype to cast parameters to; `None` keeps that of each tensor.
      ignore: Patterns of tensors to pass over, such as `"cls.seq_relationship.*"`.
      **changes: Fields of `TransformerConfig` that change no parameters, such as `scan=True`, `dtype=jnp.bfloat16`.

    Returns:
      A `LanguageModel`; for BERT an `Encoder`, for ViT a `ViT`.

    Raises:
      ValueError: If a tensor is missing, unexpected or of another shape, or the configuration is not supported.

    Example:
      >>> import normjax as nj
      >>> from flax import nnx
      >>> hf = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 11}
      >>> config, options = nj.loaders.config_from_hf(hf)
      >>> tensors = nj.loaders.to_hf(nj.models.LanguageModel(config, **options, rngs=nnx.Rngs(0)), hf)
      >>> nj.loaders.from_hf(tensors, hf, scan=True).stack.blocks[0].ffn.branch.up.kernel.shape
      (2, 8, 32)
    """
    plan = _plan(hf)
    shapes = _shapes(plan)
    rules = _active(plan, shapes)
    given = matched(tensors, plan, rules, ignore)
    params: Arrays = {}
    for name, rule in rules.items():
        tensor = np.asarray(given[name])
        check(name, tensor, foreign_shape(rule, shapes), param_dtype)
        params |= to_ours(rule, tensor)
    cast = params if param_dtype is None else {path: value.astype(param_dtype) for path, value in params.items()}
    dtypes = {value.dtype for value in cast.values()}
    known = {"param_dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    config = dataclasses.replace(plan.config, **known | changes)
    graph, state = _abstract(plan, config)
    if config.scan:
        cast = stacked(cast, nnx.merge(graph, state).stack.runs)
    flat = dict(nnx.to_flat_state(state))
    if different := _different({_name(path): v.get_value().shape for path, v in flat.items()}, cast):
        raise ValueError(f"with {changes} it is another model than the tensors': they differ in {different}.")
    filled = {path: v.replace(jnp.asarray(cast[_name(path)])) for path, v in flat.items()}
    return nnx.merge(graph, nnx.from_flat_state(filled))


def to_hf(model: Any, hf: HuggingFace) -> dict[str, np.ndarray]:
    """The tensors of a model under Hugging Face's names.

    Args:
      model: As `from_hf` makes it, scanned or not.
      hf: What the config.json beside the tensors will hold.

    Returns:
      NumPy arrays by name, in the dtypes of the parameters; a tied head is left out.

    Raises:
      TypeError: If the model is of another class.
      ValueError: If it is not one that the configuration describes.

    Example:
      >>> import normjax as nj
      >>> from flax import nnx
      >>> hf = {"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 5}
      >>> config, options = nj.loaders.config_from_hf(hf)
      >>> tensors = nj.loaders.to_hf(nj.models.LanguageModel(config, **options, rngs=nnx.Rngs(0)), hf)
      >>> tensors["transformer.h.0.attn.c_attn.weight"].shape
      (4, 12)
    """
    plan = _plan(hf)
    if not isinstance(model, plan.model):
        raise TypeError(f"expected a {plan.model.__name__} for {hf['model_type']!r}, got a {type(model).__name__}.")
    shapes = _shapes(plan)
    params: Arrays = {_name(path): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    if model.stack.config.scan:
        params = unstacked(params, model.stack.runs)
    if different := _different(shapes, params):
        raise ValueError(
            f"the model is no {hf['model_type']!r} of this configuration: it differs in {different}. Give the "
            "configuration that it was made with."
        )
    # What the writer takes from an array is its memory, whatever its strides.
    return {name: np.ascontiguousarray(to_theirs(rule, params)) for name, rule in _active(plan, shapes).items()}


def _plan(hf: HuggingFace) -> Plan:
    kind = hf.get("model_type")
    if kind not in _PLANS:
        raise ValueError(f"model_type={kind!r} is not supported; expected one of {', '.join(sorted(_PLANS))}.")
    return _PLANS[kind](hf)


def _name(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _abstract(plan: Plan, config: TransformerConfig) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: plan.model(config, **plan.options, rngs=nnx.Rngs(0))))


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    _, state = _abstract(plan, plan.config)
    return {_name(path): v.get_value().shape for path, v in nnx.to_flat_state(state)}


def _active(plan: Plan, shapes: Mapping[str, Any]) -> Table:
    """The rules of what this model has: a table also names biases and norms that only its relatives have."""
    rules = at_every(plan.table, plan.config.layers)
    active = {name: rule for name, rule in rules.items() if all(path in shapes for path in rule.paths)}
    assert {path for rule in active.values() for path in rule.paths} == set(shapes)
    return active


def _different(shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, Any]) -> str:
    found = {path: tuple(value.shape) for path, value in params.items()}
    paths = sorted(path for path in {**shapes, **found} if shapes.get(path) != found.get(path))
    shown = ", ".join(f"{path} {found.get(path)}, not {shapes.get(path)}" for path in paths[:4])
    return f"{len(paths)} parameters: {shown}{', ...' if len(paths) > 4 else ''}" if paths else ""
