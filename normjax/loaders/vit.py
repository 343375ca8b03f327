"""ViT for classification as Hugging Face stores it; its images have their channels first, ours last."""

from normjax.loaders._configuration import HuggingFace, Plan, activation, refuse_unless, require
from normjax.loaders.rules import Rule, Table, convolution, joined, linear, norm, placed
from normjax.models import ViT, presets

_THEIRS, _ATTENTION, _FFN = "encoder.layer.{i}.", "blocks.{i}.attention", "blocks.{i}.ffn"

STACK: Table = joined(
    norm(f"{_THEIRS}layernorm_before", f"{_ATTENTION}.before"),
    *(linear(f"{_THEIRS}attention.attention.{n}", f"{_ATTENTION}.branch.{n}") for n in ("query", "key", "value")),
    linear(f"{_THEIRS}attention.output.dense", f"{_ATTENTION}.branch.out"),
    norm(f"{_THEIRS}layernorm_after", f"{_FFN}.before"),
    linear(f"{_THEIRS}intermediate.dense", f"{_FFN}.branch.up"),
    linear(f"{_THEIRS}output.dense", f"{_FFN}.branch.down"),
    norm("layernorm", "final_norm"),
)
_TABLE = joined(
    placed(STACK, "vit.", "stack."),
    {"vit.embeddings.cls_token": Rule(("class_token",), leading=2)},
    {"vit.embeddings.position_embeddings": Rule(("position_embedding",), leading=1)},
    convolution("vit.embeddings.patch_embeddings.projection", "patch_embedding"),
    linear("classifier", "head"),
)


def plan(hf: HuggingFace) -> Plan:
    """A ViT whose head reads the class token."""
    refuse_unless(hf, qkv_bias=True, architectures=["ViTForImageClassification"])
    h = require(hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "image_size")
    config = presets.vit(
        epsilon=hf.get("layer_norm_eps", 1e-12),
        layers=h["num_hidden_layers"],
        features=h["hidden_size"],
        heads=h["num_attention_heads"],
        hidden=h["intermediate_size"],
        activation=activation(hf, "hidden_act", default="gelu"),
    )
    labels = hf.get("id2label") or range(hf.get("num_labels", 2))
    options = {"image_size": h["image_size"], "patch_size": hf.get("patch_size", 16), "classes": len(labels)}
    return Plan(ViT, config, options | {"channels": hf.get("num_channels", 3)}, _TABLE, "vit.", {})
