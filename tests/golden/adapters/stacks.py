"""Adapters of whole stacks of blocks: a configuration from the sidecar, and a table of parameter names."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import normjax as nj
from normjax.models import AttentionKind, Rope, TransformerConfig, presets
from tests.golden.adapters._kinds import Adapter, Check
from tests.golden.adapters._stacks import Layout, Part, at, joined, linear_names, norm_names, stack
from tests.golden.vectors import Vector

_QKV = ("query", "key", "value")

# The recorded stacks of one block layout and many placements.
_REFERENCE = joined(
    *(
        linear_names(f"blocks.{{i}}.attention.branch.{ours}", f"blocks.{{i}}.attn.{ours[0]}")
        for ours in ("query", "key")
    ),
    linear_names("blocks.{i}.attention.branch.value", "blocks.{i}.attn.v"),
    linear_names("blocks.{i}.attention.branch.out", "blocks.{i}.attn.o"),
    *(norm_names(f"blocks.{{i}}.attention.branch.{n}_norm", f"blocks.{{i}}.attn.{n[0]}n") for n in _QKV),
    *(linear_names(f"blocks.{{i}}.ffn.branch.{n}", f"blocks.{{i}}.ffn.{n}") for n in ("up", "down")),
    {"blocks.{i}.attention.gate": "blocks.{i}.g1", "blocks.{i}.ffn.gate": "blocks.{i}.g2"},
)
_ENDS = norm_names("embedding_norm", "n0") | norm_names("final_norm", "nf")


def _reference_layout(places: dict[str, tuple[str, str]]) -> Layout:
    """The layout in which the norms of attention and feed-forward have these recorded names."""
    norms = (
        norm_names(f"blocks.{{i}}.{sublayer}.{where}", f"blocks.{{i}}.{name}")
        for where, names in places.items()
        for sublayer, name in zip(("attention", "ffn"), names, strict=True)
    )
    return Layout(_ENDS, joined(_REFERENCE, *norms))


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


def _hugging_face(prefix: str, names: dict[str, str], extra: dict[str, str | Part] | None = None) -> Layout:
    """Llama's names below `prefix`, with these names of the norms."""
    attention = {f"attention.branch.{n}": f"self_attn.{n[0]}_proj" for n in _QKV}
    modules = attention | {"attention.branch.out": "self_attn.o_proj"}
    modules |= {f"ffn.branch.{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    norms = {"attention.branch.query_norm": "self_attn.q_norm", "attention.branch.key_norm": "self_attn.k_norm"} | names
    table = joined(
        *(linear_names(f"blocks.{{i}}.{k}", f"{prefix}{{i}}.{v}") for k, v in modules.items()),
        *(norm_names(f"blocks.{{i}}.{k}", f"{prefix}{{i}}.{v}") for k, v in norms.items()),
    )
    return Layout(norm_names("final_norm", "norm"), table | (extra or {}), "hidden_{i}")


_PRE = {"attention.before": "input_layernorm", "ffn.before": "post_attention_layernorm"}
_OUTPUT = {"attention.output": "post_attention_layernorm", "ffn.output": "post_feedforward_layernorm"}
_SANDWICH = {"attention.before": "input_layernorm", "ffn.before": "pre_feedforward_layernorm"} | _OUTPUT


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


def _preset(preset: Callable[..., TransformerConfig], layout: Layout) -> Callable[[Vector], Check]:
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

    return stack(layout, configure)


def _kind(preset: Callable[..., TransformerConfig], name: str, h: dict[str, Any]) -> AttentionKind:
    rope = h["rope_parameters"].get(name, h["rope_parameters"])
    local = name == "sliding_attention"
    rotated = preset is not presets.cohere2 or local
    turn = Rope(rope["rope_theta"], interleaved=preset is presets.cohere2) if rotated else None
    return AttentionKind(window=h["sliding_window"] if local else None, rope=turn)


_GPT2 = Layout(
    norm_names("final_norm", "ln_f"),
    joined(
        *(
            {
                f"blocks.{{i}}.attention.branch.{n}.kernel": Part("h.{i}.attn.c_attn.weight", place, 3, 1),
                f"blocks.{{i}}.attention.branch.{n}.bias": Part("h.{i}.attn.c_attn.bias", place, 3),
            }
            for place, n in enumerate(("query", "key", "value"))
        ),
        linear_names("blocks.{i}.attention.branch.out", "h.{i}.attn.c_proj"),
        linear_names("blocks.{i}.ffn.branch.up", "h.{i}.mlp.c_fc"),
        linear_names("blocks.{i}.ffn.branch.down", "h.{i}.mlp.c_proj"),
        norm_names("blocks.{i}.attention.before", "h.{i}.ln_1"),
        norm_names("blocks.{i}.ffn.before", "h.{i}.ln_2"),
    ),
    "hidden_{i}",
    transposed=False,
)


def _gpt2(vector: Vector) -> TransformerConfig:
    h = vector.hyper
    sizes = {"layers": h["n_layer"], "features": h["n_embd"], "heads": h["n_head"], "hidden": h["n_inner"]}
    return presets.gpt2(epsilon=h["layer_norm_epsilon"], **sizes)


_BERT_LAYER = "encoder.layer.{i}."
_BERT = Layout(
    norm_names("embedding_norm", "embeddings.LayerNorm"),
    joined(
        *(linear_names(f"blocks.{{i}}.attention.branch.{n}", f"{_BERT_LAYER}attention.self.{n}") for n in _QKV),
        linear_names("blocks.{i}.attention.branch.out", f"{_BERT_LAYER}attention.output.dense"),
        linear_names("blocks.{i}.ffn.branch.up", f"{_BERT_LAYER}intermediate.dense"),
        linear_names("blocks.{i}.ffn.branch.down", f"{_BERT_LAYER}output.dense"),
        norm_names("blocks.{i}.attention.after", f"{_BERT_LAYER}attention.output.LayerNorm"),
        norm_names("blocks.{i}.ffn.after", f"{_BERT_LAYER}output.LayerNorm"),
    ),
    "hidden_{i}",
)

_T5_BLOCK = "encoder.block.{i}.layer."
_T5 = Layout(
    norm_names("final_norm", "encoder.final_layer_norm")
    | {"relative_bias.embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
    joined(
        *(
            linear_names(
                f"blocks.{{i}}.attention.branch.{n}", f"{_T5_BLOCK}0.SelfAttention.{'o' if n == 'out' else n[0]}"
            )
            for n in ("query", "key", "value", "out")
        ),
        *(
            linear_names(f"blocks.{{i}}.ffn.branch.{ours}", f"{_T5_BLOCK}1.DenseReluDense.{theirs}")
            for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
        ),
        norm_names("blocks.{i}.attention.before", f"{_T5_BLOCK}0.layer_norm"),
        norm_names("blocks.{i}.ffn.before", f"{_T5_BLOCK}1.layer_norm"),
    ),
    "hidden_{i}",
)


def _t5(vector: Vector) -> TransformerConfig:
    h = vector.hyper
    sizes = {"layers": h["num_layers"], "features": h["d_model"], "heads": h["num_heads"], "hidden": h["d_ff"]}
    options = {"head_features": h["d_kv"], "relative_buckets": h["relative_attention_num_buckets"]}
    return presets.t5_encoder(epsilon=h["layer_norm_epsilon"], **sizes, **options)


_GLM4 = _hugging_face(
    "layers.",
    {
        "attention.before": "input_layernorm",
        "attention.output": "post_self_attn_layernorm",
        "ffn.before": "post_attention_layernorm",
        "ffn.output": "post_mlp_layernorm",
    },
    {
        f"blocks.{{i}}.ffn.branch.{n}.kernel": Part("layers.{i}.mlp.gate_up_proj.weight", place, 2)
        for place, n in enumerate(("gate", "up"))
    },
)


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
    attention = "layers.{i}.self_attn."
    return Layout(
        {},
        joined(
            *(linear_names(f"blocks.{{i}}.attention.branch.{n}", f"{attention}{n[0]}_proj") for n in _QKV),
            linear_names("blocks.{i}.attention.branch.out", f"{attention}out_proj"),
            norm_names("blocks.{i}.attention.branch.inner_norm", f"{attention}inner_attn_ln"),
            linear_names("blocks.{i}.ffn.branch.up", "layers.{i}.ffn.fc1"),
            linear_names("blocks.{i}.ffn.branch.down", "layers.{i}.ffn.fc2"),
            norm_names("blocks.{i}.ffn.branch.inner_norm", "layers.{i}.ffn.ffn_layernorm"),
            norm_names(f"blocks.{{i}}.attention.{where}", "layers.{i}.self_attn_layer_norm"),
            norm_names(f"blocks.{{i}}.ffn.{where}", "layers.{i}.final_layer_norm"),
        ),
    )


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


_POST = {"attention.after": "post_attention_layernorm", "ffn.after": "post_feedforward_layernorm"}


def _mix_layout(names: dict[str, str]) -> Layout:
    return _hugging_face("layers.", names)._replace(outputs="layer_{i}")


def _first_and_rest(first: Layout, rest: Layout, count: str, layers: str) -> Callable[[Vector], Layout]:
    """The names of one layout in as many blocks as the hyper-parameter `count` says, those of another in the rest."""

    def layout(vector: Vector) -> Layout:
        tables = (first if i < vector.hyper[count] else rest for i in range(vector.hyper[layers]))
        own = ({at(k, i): at(v, i) for k, v in table.block.items()} for i, table in enumerate(tables))
        return first._replace(once=joined(first.once, *own), block={})

    return layout


_PERI = _reference_layout({"before": ("n1", "n2"), "output": ("n3", "n4")})
_KEEL = _reference_layout({"before": ("n1", "n2"), "after": ("n3", "n4")})

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"refstack_preln_.*": _reference(nj.placements.pre, _BEFORE),
    r"refstack_postln_.*": _reference(nj.placements.post, _AFTER),
    r"refstack_periln_.*": _reference(functools.partial(nj.placements.peri, embedding=True), _PERI),
    r"refstack_reordered_.*": _reference(nj.placements.reordered, _reference_layout({"output": ("n1", "n2")})),
    r"refstack_mixln_.*": _reference(nj.placements.mix, _first_and_rest(_AFTER, _BEFORE, "num_post", "layers")),
    r"refstack_deepnorm_.*": _reference(nj.placements.deep, _AFTER),
    r"refstack_lns_.*": _reference(nj.placements.layer_norm_scaling, _BEFORE),
    r"refstack_residual_.*": _reference(nj.placements.resi_dual, _AFTER),
    r"refstack_hybridnorm_star_.*": _reference(functools.partial(nj.placements.hybrid, star=True), _BEFORE),
    r"refstack_hybridnorm_.*": _reference(nj.placements.hybrid, _BEFORE),
    r"refstack_keel_.*": _reference(nj.placements.keel, _KEEL),
    r"refstack_layerscale_.*": _reference(nj.placements.layer_scale, _BEFORE),
    r"block_preln_gpt2_.*": stack(_GPT2, _gpt2),
    r"block_postln_bert_.*": _preset(presets.bert, _BERT),
    r"block_preln_llama_.*": _preset(presets.llama, _hugging_face("layers.", _PRE)),
    r"block_preln_qknorm_qwen3_.*": _preset(presets.qwen3, _hugging_face("layers.", _PRE)),
    r"block_preln_t5enc_.*": stack(_T5, _t5),
    r"block_periln_gemma2_.*": _preset(presets.gemma2, _hugging_face("layers.", _SANDWICH)),
    r"block_periln_qknorm_gemma3_.*": _preset(presets.gemma3, _hugging_face("layers.", _SANDWICH)),
    r"block_reorderednorm_olmo2_.*": _preset(presets.olmo2, _hugging_face("layers.", _OUTPUT)),
    r"block_reorderednorm_exaone4_.*": _preset(presets.exaone4, _hugging_face("layers.", _OUTPUT)),
    r"block_sandwich_glm4_.*": _preset(presets.glm4, _GLM4),
    r"block_parallel_cohere2_.*": _preset(
        presets.cohere2, _hugging_face("layers.", {"attention.before": "input_layernorm"})
    ),
    r"(preln|subln)_torchscale_.*": stack(_torchscale_layout("before"), _torchscale),
    r"(postln|deepnorm)_torchscale_.*": stack(_torchscale_layout("after"), _torchscale),
    r"(mixln_pre|lns_layernormscaling)_.*": stack(_mix_layout(_PRE), _mix),
    r"mixln_post_.*": stack(_mix_layout(_POST), _mix),
    r"mixln_postpre_.*": stack(
        _first_and_rest(_mix_layout(_POST), _mix_layout(_PRE), "num_post_layers", "layers"), _mix
    ),
    r"mixln_sandwich_.*": stack(_mix_layout(_SANDWICH), _mix),
}
