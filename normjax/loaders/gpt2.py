"""GPT-2 as Hugging Face stores it: projections (inputs, outputs), queries, keys and values in one."""

from normjax.loaders._configuration import HuggingFace, Plan, activation, refuse_unless, require
from normjax.loaders.rules import Table, embedding, joined, linear, norm, placed
from normjax.models import LanguageModel, presets

_ATTENTION, _FFN = "blocks.{i}.attention", "blocks.{i}.ffn"

STACK: Table = joined(
    norm("h.{i}.ln_1", f"{_ATTENTION}.before"),
    linear("h.{i}.attn.c_attn", *(f"{_ATTENTION}.branch.{n}" for n in ("query", "key", "value")), transposed=False),
    linear("h.{i}.attn.c_proj", f"{_ATTENTION}.branch.out", transposed=False),
    norm("h.{i}.ln_2", f"{_FFN}.before"),
    linear("h.{i}.mlp.c_fc", f"{_FFN}.branch.up", transposed=False),
    linear("h.{i}.mlp.c_proj", f"{_FFN}.branch.down", transposed=False),
    norm("ln_f", "final_norm"),
)
_TABLE = joined(
    placed(STACK, "transformer.", "stack."),
    embedding("transformer.wte", "embedding"),
    embedding("transformer.wpe", "position_embedding"),
    linear("lm_head", "head"),
)


def plan(hf: HuggingFace) -> Plan:
    """GPT-2's stack with learned positions."""
    refuse_unless(
        hf,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    h = require(hf, "n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
    config = presets.gpt2(
        epsilon=hf.get("layer_norm_epsilon", 1e-5),
        layers=h["n_layer"],
        features=h["n_embd"],
        heads=h["n_head"],
        hidden=hf.get("n_inner") or 4 * h["n_embd"],
        activation=activation(hf, "activation_function", default="gelu_new"),
    )
    options = {"vocabulary": h["vocab_size"], "max_tokens": h["n_positions"]}
    copies = {"lm_head.weight": "transformer.wte.weight"}
    return Plan(LanguageModel, config, options, _TABLE, "transformer.", copies)
