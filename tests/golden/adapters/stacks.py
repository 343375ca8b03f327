"""Adapters of whole stacks of blocks: a configuration from the sidecar, and a table of parameter names."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax

import normjax as nj
from normjax.loaders import bert, decoders, gpt2
from normjax.loaders.rules import Rule, Table, at_every, embedding, joined, linear, norm
from normjax.models import AttentionKind, Rope, TransformerConfig, presets
from tests.golden.adapters._kinds import Adapter, Check
from tests.golden.adapters._stacks import Layout, stack
from tests.golden.vectors import Vector

_QKV = ("query", "key", "value")

# The recorded stacks of one block layout and many placements.
_REFERENCE = joined(
    *(linear(f"blocks.{{i}}.attn.{n[0]}", f"blocks.{{i}}.attention.branch.{n}") for n in (*_QKV, "out")),
    *(norm(f"blocks.{{i}}.attn.{n[0]}n", f"blocks.{{i}}.attention.branch.{n}_norm") for n in _QKV),
    *(linear(f"blocks.{{i}}.ffn.{n}", f"blocks.{{i}}.ffn.branch.{n}") for n in ("up", "down")),
    {f"blocks.{{i}}.{g}": Rule((f"blocks.{{i}}.{k}.gate",)) for g, k in (("g1", "attention"), ("g2", "ffn"))},
    norm("n0", "embedding_norm"),
    norm("nf", "final_norm"),
)


def _reference_layout(places: dict[str, tuple[str, str]]) -> Layout:
    """The layout in which the norms of attention and feed-forward have these recorded names."""
    norms = (
        norm(f"blocks.{{i}}.{name}", f"blocks.{{i}}.{sublayer}.{where}")
        for where, names in places.items()
        for sublayer, name in zip(("attention", "ffn"), names, strict=True)
    )
    return Layout(joined(_REFERENCE, *norms))


def _reference(place: Callable[..., nj.placements.Placement], layout: Any) -> Callable[[Vector], Check]:
    def configure(vector: Vector) -> TransformerConfig:
        h = vector.hyper
        norm = (nj.layer_norm if "_ln_" in vector.name else nj.rms_norm)(epsilon=h["eps"])
        options = {"num_post": h["num_post"]} if "num_post" in h else {}
        return TransformerConfig(
            layers=h["layers"],
            features=h["d"],
            heads=h["heads"],
            hidden=h["ffn"],
            placement=place(norm, **options),
            activation=functools.partial(jax.nn.gelu, approximate=False),
        )

    return stack(layout, configure)


_BEFORE, _AFTER = (_reference_layout({where: ("n1", "n2")}) for where in ("before", "after"))


_PARALLEL = decoders.stack(attention_before="input_layernorm")
_GLM4 = decoders.stack(
    attention_before="input_layernorm",
    attention_output="post_self_attn_layernorm",
    ffn_before="post_attention_layernorm",
    ffn_output="post_mlp_layernorm",
) | linear("layers.{i}.mlp.gate_up_proj", *(f"blocks.{{i}}.ffn.branch.{n}" for n in ("gate", "up")))


def _sizes(vector: Vector) -> dict[str, Any]:
    h = vector.hyper
    return {
        "layers": h["num_hidden_layers"],
        "features": h["hidden_size"],
        "heads": h["num_attention_heads"],
        "kv_heads": h.get("num_key_value_heads"),
        "head_features": h.get("head_dim"),
        "hidden": h["intermediate_size"],
    }


def _preset(preset: Callable[..., TransformerConfig], table: Table) -> Callable[[Vector], Check]:
    def configure(vector: Vector) -> TransformerConfig:
        h = vector.hyper
        rope = h.get("rope_parameters", {})
        options = {"epsilon": h.get("rms_norm_eps", h.get("layer_norm_eps")), **_sizes(vector)}
        if "rope_theta" in rope:
            options["theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            options["fraction"] = rope["partial_rotary_factor"]
        if "query_pre_attn_scalar" in h:
            options["attention_scale"] = h["query_pre_attn_scalar"] ** -0.5
        config = preset(**options)
        if "layer_types" in h and (preset in (presets.gemma2, presets.gemma3, presets.cohere2)):
            config = preset(**options, kinds=tuple(_kind(preset, name, h) for name in h["layer_types"]))
        if preset is presets.gemma2:
            config = preset(**options, kinds=config.kinds, softcap=h["attn_logit_softcapping"])
        return config

    return stack(Layout(table, "hidden_{i}"), configure)


def _kind(preset: Callable[..., TransformerConfig], name: str, h: dict[str, Any]) -> AttentionKind:
    rope = h["rope_parameters"].get(name, h["rope_parameters"])
    local = name == "sliding_attention"
    rotated = preset is not presets.cohere2 or local
    turn = Rope(rope["rope_theta"], interleaved=preset is presets.cohere2) if rotated else None
    return AttentionKind(window=h["sliding_window"] if local else None, rope=turn)


def _gpt2(vector: Vector) -> TransformerConfig:
    h = vector.hyper
    sizes = {"layers": h["n_layer"], "features": h["n_embd"], "heads": h["n_head"], "hidden": h["n_inner"]}
    return presets.gpt2(epsilon=h["layer_norm_epsilon"], **sizes)


_T5_BLOCK = "encoder.block.{i}.layer."
_T5 = joined(
    *(
        linear(f"{_T5_BLOCK}0.SelfAttention.{n[0]}", f"blocks.{{i}}.attention.branch.{n}")
        for n in ("query", "key", "value", "out")
    ),
    *(
        linear(f"{_T5_BLOCK}1.DenseReluDense.{theirs}", f"blocks.{{i}}.ffn.branch.{ours}")
        for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
    ),
    norm(f"{_T5_BLOCK}0.layer_norm", "blocks.{i}.attention.before"),
    norm(f"{_T5_BLOCK}1.layer_norm", "blocks.{i}.ffn.before"),
    norm("encoder.final_layer_norm", "final_norm"),
    embedding("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "relative_bias"),
)


def _t5(vector: Vector) -> TransformerConfig:
    h = vector.hyper
    sizes = {"layers": h["num_layers"], "features": h["d_model"], "heads": h["num_heads"], "hidden": h["d_ff"]}
    options = {"head_features": h["d_kv"], "relative_buckets": h["relative_attention_num_buckets"]}
    return presets.t5_encoder(epsilon=h["layer_norm_epsilon"], **sizes, **options)


def _torchscale(vector: Vector) -> TransformerConfig:
    h, norm = vector.hyper, nj.layer_norm(epsilon=vector.hyper["eps"])
    if h["subln_init_mul"] is not None:
        place = nj.placements.sub(norm, final=False)
    elif h["normalize_before"]:
        place = nj.placements.Placement(norm, nj.placements.pre(norm).rule, final=False)
    else:
        place = nj.placements.deep(norm, alpha=h["alpha"])
    return TransformerConfig(
        layers=h["layers"],
        features=h["hidden"],
        heads=h["heads"],
        hidden=h["ffn"],
        placement=place,
        kinds=(AttentionKind(causal=False),),
        use_bias=True,
        activation=functools.partial(jax.nn.gelu, approximate=False),
    )


def _torchscale_layout(where: str) -> Layout:
    attention, ffn = "blocks.{i}.attention", "blocks.{i}.ffn"
    table = joined(
        *(linear(f"layers.{{i}}.self_attn.{n[0]}_proj", f"{attention}.branch.{n}") for n in _QKV),
        linear("layers.{i}.self_attn.out_proj", f"{attention}.branch.out"),
        norm("layers.{i}.self_attn.inner_attn_ln", f"{attention}.branch.inner_norm"),
        linear("layers.{i}.ffn.fc1", f"{ffn}.branch.up"),
        linear("layers.{i}.ffn.fc2", f"{ffn}.branch.down"),
        norm("layers.{i}.ffn.ffn_layernorm", f"{ffn}.branch.inner_norm"),
        norm("layers.{i}.self_attn_layer_norm", f"{attention}.{where}"),
        norm("layers.{i}.final_layer_norm", f"{ffn}.{where}"),
    )
    return Layout(table)


def _mix(vector: Vector) -> TransformerConfig:
    """The Llama of the Mix-LN and LayerNorm-Scaling repositories."""
    h = vector.hyper
    norm = nj.rms_norm(epsilon=h["eps"], precision=nj.precision.LLAMA)
    places = {
        "pre": nj.placements.pre(norm),
        # A final norm whatever the blocks have.
        "post": nj.placements.mix(norm, post_share=1.0),
        "post_pre": nj.placements.mix(norm, num_post=h["num_post_layers"]),
        "sandwich": nj.placements.peri(norm),
        "LNS": nj.placements.layer_norm_scaling(norm),
    }
    sizes = {"layers": h["layers"], "features": h["hidden"], "heads": h["heads"], "hidden": h["intermediate"]}
    options = {"theta": h["rope_theta"], "head_features": h["head_dim"], "placement": places[h["norm_type"]]}
    return presets.llama(**sizes, **options)


_POST = decoders.stack(attention_after="post_attention_layernorm", ffn_after="post_feedforward_layernorm")


def _first_and_rest(first: Table, rest: Table, count: str, layers: str) -> Callable[[Vector], Layout]:
    """The names of one table in as many blocks as the hyper-parameter `count` says, those of another in the rest."""

    def layout(vector: Vector) -> Layout:
        early, late = (at_every(table, vector.hyper[layers]) for table in (first, rest))
        in_late = lambda rule: (m := re.match(r"blocks\.(\d+)\.", rule.paths[0])) and int(m[1]) >= vector.hyper[count]
        kept = {name: rule for name, rule in early.items() if not in_late(rule)}
        return Layout(kept | {name: rule for name, rule in late.items() if in_late(rule)})

    return layout


_PERI = _reference_layout({"before": ("n1", "n2"), "output": ("n3", "n4")})
_KEEL = _reference_layout({"before": ("n1", "n2"), "after": ("n3", "n4")})

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"refstack_preln_.*": _reference(nj.placements.pre, _BEFORE),
    r"refstack_postln_.*": _reference(nj.placements.post, _AFTER),
    r"refstack_periln_.*": _reference(functools.partial(nj.placements.peri, embedding=True), _PERI),
    r"refstack_reordered_.*": _reference(nj.placements.reordered, _reference_layout({"output": ("n1", "n2")})),
    r"refstack_mixln_.*": _reference(
        nj.placements.mix, _first_and_rest(_AFTER.table, _BEFORE.table, "num_post", "layers")
    ),
    r"refstack_deepnorm_.*": _reference(nj.placements.deep, _AFTER),
    r"refstack_lns_.*": _reference(nj.placements.layer_norm_scaling, _BEFORE),
    r"refstack_residual_.*": _reference(nj.placements.resi_dual, _AFTER),
    r"refstack_hybridnorm_star_.*": _reference(functools.partial(nj.placements.hybrid, star=True), _BEFORE),
    r"refstack_hybridnorm_.*": _reference(nj.placements.hybrid, _BEFORE),
    r"refstack_keel_.*": _reference(nj.placements.keel, _KEEL),
    r"refstack_layerscale_.*": _reference(nj.placements.layer_scale, _BEFORE),
    r"block_preln_gpt2_.*": stack(Layout(gpt2.STACK, "hidden_{i}"), _gpt2),
    r"block_postln_bert_.*": _preset(presets.bert, bert.STACK),
    r"block_preln_llama_.*": _preset(presets.llama, decoders.PRE),
    r"block_preln_qknorm_qwen3_.*": _preset(presets.qwen3, decoders.PRE),
    r"block_preln_t5enc_.*": stack(Layout(_T5, "hidden_{i}"), _t5),
    r"block_periln_gemma2_.*": _preset(presets.gemma2, decoders.SANDWICH),
    r"block_periln_qknorm_gemma3_.*": _preset(presets.gemma3, decoders.SANDWICH),
    r"block_reorderednorm_olmo2_.*": _preset(presets.olmo2, decoders.REORDERED),
    r"block_reorderednorm_exaone4_.*": _preset(presets.exaone4, decoders.REORDERED),
    r"block_sandwich_glm4_.*": _preset(presets.glm4, _GLM4),
    r"block_parallel_cohere2_.*": _preset(presets.cohere2, _PARALLEL),
    r"(preln|subln)_torchscale_.*": stack(_torchscale_layout("before"), _torchscale),
    r"(postln|deepnorm)_torchscale_.*": stack(_torchscale_layout("after"), _torchscale),
    r"(mixln_pre|lns_layernormscaling)_.*": stack(Layout(decoders.PRE), _mix),
    r"mixln_post_.*": stack(Layout(_POST), _mix),
    r"mixln_postpre_.*": stack(_first_and_rest(_POST, decoders.PRE, "num_post_layers", "layers"), _mix),
    r"mixln_sandwich_.*": stack(Layout(decoders.SANDWICH), _mix),
}
