"""BERT as Hugging Face stores it, alone or with its head for masked tokens."""

from normjax.loaders._configuration import HuggingFace, Plan, activation, refuse_unless, require
from normjax.loaders.rules import Rule, Table, embedding, joined, linear, norm, placed
from normjax.models import Encoder, presets

_THEIRS, _ATTENTION, _FFN = "encoder.layer.{i}.", "blocks.{i}.attention", "blocks.{i}.ffn"

STACK: Table = joined(
    norm("embeddings.LayerNorm", "embedding_norm"),
    *(linear(f"{_THEIRS}attention.self.{n}", f"{_ATTENTION}.branch.{n}") for n in ("query", "key", "value")),
    linear(f"{_THEIRS}attention.output.dense", f"{_ATTENTION}.branch.out"),
    norm(f"{_THEIRS}attention.output.LayerNorm", f"{_ATTENTION}.after"),
    linear(f"{_THEIRS}intermediate.dense", f"{_FFN}.branch.up"),
    linear(f"{_THEIRS}output.dense", f"{_FFN}.branch.down"),
    norm(f"{_THEIRS}output.LayerNorm", f"{_FFN}.after"),
)
_TABLE = joined(
    placed(STACK, "bert.", "stack."),
    embedding("bert.embeddings.word_embeddings", "embedding"),
    embedding("bert.embeddings.position_embeddings", "position_embedding"),
    embedding("bert.embeddings.token_type_embeddings", "type_embedding"),
    linear("bert.pooler.dense", "pooler"),
    linear("cls.predictions.transform.dense", "head.dense"),
    norm("cls.predictions.transform.LayerNorm", "head.norm"),
    {"cls.predictions.bias": Rule(("head.bias",))},
)
_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# What each architecture has besides the stack.
_HEADS = {
    "BertModel": {"pooler": True, "masked_head": False},
    "BertForMaskedLM": {"pooler": False, "masked_head": True},
    "BertForPreTraining": {"pooler": True, "masked_head": True},
}


def plan(hf: HuggingFace) -> Plan:
    """BERT's encoder, with the heads of its architecture."""
    refuse_unless(
        hf,
        position_embedding_type="absolute",
        is_decoder=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    name = (hf.get("architectures") or ["BertModel"])[0]
    if name not in _HEADS:
        raise ValueError(f"the architecture {name!r} is not supported, only {', '.join(_HEADS)}.")
    h = require(
        hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"
    ) | require(hf, "max_position_embeddings", "type_vocab_size")
    config = presets.bert(
        epsilon=hf.get("layer_norm_eps", 1e-12),
        layers=h["num_hidden_layers"],
        features=h["hidden_size"],
        heads=h["num_attention_heads"],
        hidden=h["intermediate_size"],
        activation=activation(hf, "hidden_act", default="gelu"),
    )
    options = {"vocabulary": h["vocab_size"], "max_tokens": h["max_position_embeddings"], "types": h["type_vocab_size"]}
    return Plan(Encoder, config, options | _HEADS[name], _TABLE, "bert.", _COPIES)
