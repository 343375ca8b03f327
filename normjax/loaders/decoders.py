"""Llama and what Hugging Face stores under its names: Qwen 3, OLMo 2, Gemma 2 and 3. The norms tell them apart."""

import functools
from collections.abc import Callable
from typing import Any

from normjax.loaders._configuration import HuggingFace, Plan, activation, kinds, refuse_unless, require, rope
from normjax.loaders.rules import Table, embedding, joined, linear, norm, placed
from normjax.models import AttentionKind, LanguageModel, TransformerConfig, presets

_LAYER, _ATTENTION, _FFN = "layers.{i}.", "blocks.{i}.attention", "blocks.{i}.ffn"

BLOCK: Table = joined(
    *(linear(f"{_LAYER}self_attn.{n[0]}_proj", f"{_ATTENTION}.branch.{n}") for n in ("query", "key", "value")),
    linear(f"{_LAYER}self_attn.o_proj", f"{_ATTENTION}.branch.out"),
    *(norm(f"{_LAYER}self_attn.{n[0]}_norm", f"{_ATTENTION}.branch.{n}_norm") for n in ("query", "key")),
    *(linear(f"{_LAYER}mlp.{n}_proj", f"{_FFN}.branch.{n}") for n in ("gate", "up", "down")),
    norm("norm", "final_norm"),
)


def stack(**norms: str) -> Table:
    """The names of a stack whose norms have these names: `attention_before="input_layernorm"`."""
    named = (norm(f"{_LAYER}{theirs}", f"blocks.{{i}}.{ours.replace('_', '.')}") for ours, theirs in norms.items())
    return joined(BLOCK, *named)


PRE = stack(attention_before="input_layernorm", ffn_before="post_attention_layernorm")
REORDERED = stack(attention_output="post_attention_layernorm", ffn_output="post_feedforward_layernorm")
SANDWICH = stack(
    attention_before="input_layernorm",
    attention_output="post_attention_layernorm",
    ffn_before="pre_feedforward_layernorm",
    ffn_output="post_feedforward_layernorm",
)


def _table(names: Table) -> Table:
    ends = embedding("model.embed_tokens", "embedding") | linear("lm_head", "head")
    return joined(placed(names, "model.", "stack."), ends)


_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}


def sizes(hf: HuggingFace) -> dict[str, Any]:
    """The sizes, and what all of these models have in common."""
    h = require(hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "rms_norm_eps")
    return {
        "epsilon": h["rms_norm_eps"],
        "layers": h["num_hidden_layers"],
        "features": h["hidden_size"],
        "heads": h["num_attention_heads"],
        "kv_heads": hf.get("num_key_value_heads"),
        "head_features": hf.get("head_dim"),
        "hidden": h["intermediate_size"],
        "activation": activation(hf, "hidden_activation", "hidden_act", default="silu"),
    }


def _biases(hf: HuggingFace) -> bool:
    found = {bool(hf.get(name)) for name in ("attention_bias", "mlp_bias")}
    if len(found) > 1:
        raise ValueError("attention_bias and mlp_bias differ; all projections have biases here, or none has.")
    return found.pop()


def _plan(hf: HuggingFace, config: TransformerConfig, names: Table, tied: bool, **options: Any) -> Plan:
    options |= {"vocabulary": require(hf, "vocab_size")["vocab_size"], "tied": hf.get("tie_word_embeddings", tied)}
    copies = _COPIES if options["tied"] else {}
    return Plan(LanguageModel, config, options, _table(names), "model.", copies)


def llama(hf: HuggingFace) -> Plan:
    """Llama 2 and 3, whose rotation may be scaled."""
    refuse_unless(hf, pretraining_tp=1)
    kind = AttentionKind(rope=rope(hf, 1e4))
    return _plan(hf, presets.llama(**sizes(hf), kinds=(kind,), use_bias=_biases(hf)), PRE, tied=False)


def _by_layer(
    hf: HuggingFace, preset: Callable[..., TransformerConfig], names: Table, theta: float, window: int | None
) -> Plan:
    refuse_unless(hf, attention_bias=False, mlp_bias=False)
    each = kinds(hf, window, ("full_attention",), lambda layer: rope(hf, theta, layer))
    return _plan(hf, preset(**sizes(hf), kinds=each), names, tied=False)


def qwen3(hf: HuggingFace) -> Plan:
    """Qwen 3, whose upper layers may have windows."""
    if hf.get("use_sliding_window") and not hf.get("layer_types"):
        raise ValueError("use_sliding_window=True without layer_types does not say which layers have windows.")
    return _by_layer(hf, presets.qwen3, PRE, 1e4, hf.get("sliding_window"))


def olmo2(hf: HuggingFace) -> Plan:
    """OLMo 2."""
    return _by_layer(hf, presets.olmo2, REORDERED, 1e4, None)


def _gemma(
    hf: HuggingFace, preset: Callable[..., TransformerConfig], types: tuple[str, ...], rotation: Any, **fields: Any
) -> Plan:
    refuse_unless(hf, attention_bias=False, use_bidirectional_attention=False)
    h = require(hf, "query_pre_attn_scalar", "sliding_window", "head_dim")
    fields |= {"kinds": kinds(hf, h["sliding_window"], types, rotation)}
    fields |= {"attention_scale": h["query_pre_attn_scalar"] ** -0.5, "softcap": hf.get("attn_logit_softcapping")}
    given = sizes(hf) | {"activation": activation(hf, "hidden_activation", default="gelu_pytorch_tanh")}
    options = {"embedding_scale": hf["hidden_size"] ** 0.5, "logit_softcap": hf.get("final_logit_softcapping")}
    return _plan(hf, preset(**given | fields), SANDWICH, tied=True, **options)


def gemma2(hf: HuggingFace) -> Plan:
    """Gemma 2: bounded scores and logits, a window in every other layer."""
    types = ("sliding_attention", "full_attention")
    return _gemma(hf, presets.gemma2, types, functools.partial(rope, hf, 1e4))


def gemma3(hf: HuggingFace) -> Plan:
    """The text part of Gemma 3: windows with a rotation of their own in all but every sixth layer."""
    types = ("sliding_attention",) * (int(hf.get("sliding_window_pattern") or 6) - 1) + ("full_attention",)
    return _gemma(hf, presets.gemma3, types, functools.partial(_gemma3_rope, hf))


def _gemma3_rope(hf: HuggingFace, layer: str) -> Any:
    if layer == "full_attention" or "sliding_attention" in (hf.get("rope_parameters") or {}):
        return rope(hf, 1e6, layer)
    # As version 4 writes it, the scaling is that of whole contexts only.
    return rope({"rope_theta": hf.get("rope_local_base_freq", 1e4)}, 1e4)
