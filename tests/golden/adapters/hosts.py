"""Adapters of the architectures in `normjax.models` that take their norm as an argument."""

import re
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

import normjax as nj
from normjax import models
from tests.golden.adapters._hosts import Arrays, below, check, filled, linear, norm, statistics
from tests.golden.adapters._kinds import Adapter, Pointwise
from tests.golden.vectors import Vector


def _graph_values(own: Arrays, ours: str, out: str, hidden: str, norms: str) -> Arrays:
    """Entries of what follows attention on nodes or on edges; `norms` has a place for the number."""
    values = linear(own, f"{ours}.out", out)
    values |= linear(own, f"{ours}.hidden", f"{hidden}1") | linear(own, f"{ours}.down", f"{hidden}2")
    return values | {k: v for i in "12" for k, v in norm(own, f"{ours}.norm{i}", norms.format(i)).items()}


def _graph_attention(own: Arrays) -> Arrays:
    named = {"attention.query": "Q", "attention.key": "K", "attention.value": "V"}
    return {k: v for ours, theirs in named.items() for k, v in linear(own, ours, f"attention.{theirs}").items()}


def _graph_norm(vector: Vector):
    hyper = vector.hyper
    if "_ln_" in vector.name:
        return nj.layer_norm(epsilon=hyper.get("ln_eps", 1e-5))
    momentum = 1 - hyper.get("bn_momentum", 0.1)
    return nj.batch_norm(momentum=momentum, epsilon=hyper.get("bn_eps", 1e-5), unbiased=True)


def _graph(vector: Vector):
    hyper, kind = vector.hyper, "layer_norm" if "_ln_" in vector.name else "batch_norm"

    def build():
        layer = models.GraphTransformerLayer(
            hyper["hidden"], hyper["heads"], norm=_graph_norm(vector), rngs=nnx.Rngs(0)
        )
        layer.set_attributes(use_running_average="_eval" in vector.name)
        return layer

    def call(inputs, params):
        outputs, states, x = {}, {}, inputs["x"]
        for i in range(len({name.split(".")[1] for name in params})):
            own = below(params, f"l.{i}.")
            layer = filled(build, _graph_attention(own) | _graph_values(own, "nodes", "O", "FFN_layer", kind + "{}"))
            outputs[f"layer_{i}"] = x = layer(x, inputs["src"], inputs["dst"])
            if kind == "batch_norm":
                for j in "12":
                    states |= statistics(layer, f"nodes.norm{j}", f"l.{i}.{kind}{j}")
        return outputs | {"y": x}, states

    return call


def _edge_graph(vector: Vector):
    hyper, kind = vector.hyper, "layer_norm" if "_ln_" in vector.name else "batch_norm"

    def build():
        layer = models.EdgeGraphTransformerLayer(
            hyper["hidden"], hyper["heads"], norm=_graph_norm(vector), rngs=nnx.Rngs(0)
        )
        layer.set_attributes(use_running_average="_eval" in vector.name)
        return layer

    def call(inputs, params):
        own = below(params, "l.")
        values = _graph_attention(own) | linear(own, "edge_gate", "attention.proj_e")
        streams = {"nodes": "h", "edges": "e"}
        for ours, theirs in streams.items():
            values |= _graph_values(own, ours, f"O_{theirs}", f"FFN_{theirs}_layer", kind + "{}_" + theirs)
        layer = filled(build, values)
        y, e = layer(inputs["x"], inputs["e"], inputs["src"], inputs["dst"])
        states = {}
        if kind == "batch_norm":
            for ours, theirs in streams.items():
                for j in "12":
                    states |= statistics(layer, f"{ours}.norm{j}", f"l.{kind}{j}_{theirs}")
        return {"y": y, "e": e}, states

    return call


def _hyper_connection(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        *_, streams, features = inputs["x"].shape
        norm = nj.rms_norm(use_scale=False, epsilon=hyper["eps"])
        build = lambda: models.HyperConnection(
            features, streams, norm=norm, rounds=hyper["sinkhorn_iters"], epsilon=hyper["eps"], rngs=nnx.Rngs(0)
        )
        values = {"mixing.kernel": params["h.fn"].T, "bias": params["h.base"], "scale": params["h.scale"]}
        return dict(zip(("collapsed", "post", "comb"), filled(build, values)(inputs["x"]), strict=True))

    return call


def _residual_gate(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        temperature = vector.hyper["temperature"]
        return models.residual_gate(inputs["r"], inputs["h"], params["g.gate"], temperature=temperature)

    return Pointwise(call)


def _siamese(vector: Vector):
    hyper = vector.hyper
    eps = hyper["eps"]

    def call(inputs, params):
        u = y = inputs["x"]
        layers = {"qkv": "attn.qkv", "out": "attn.proj", "hidden": "mlp.fc1", "down": "mlp.fc2"}
        layers |= {"modulation": "adaLN_modulation.1"}
        for i in range(len({name.split(".")[1] for name in params})):
            own, values = below(params, f"b.{i}."), {}
            for ours, theirs in layers.items():
                values |= linear(own, ours, theirs)
            for name in ("prenorm1", "prenorm2", "postnorm1", "postnorm2"):
                values |= norm(own, name, name)
            build = lambda i=i, width=own["mlp.fc1.weight"].shape[0]: models.SiameseDiTBlock(
                hyper["hidden"],
                hyper["heads"],
                index=i,
                norm=nj.layer_norm(epsilon=eps),
                inner_norm=nj.layer_norm(epsilon=eps, use_scale=False, use_bias=False),
                mlp_features=width,
                rngs=nnx.Rngs(0),
            )
            u, y = filled(build, values)(u, y, inputs["c"])
        return {"u": u, "y": y}

    return call


def _keras(own: Arrays, layers: dict[str, str]) -> Arrays:
    """Entries of ours for keras layers: what ends in "ln" has gamma and beta, the others kernel and bias."""
    values = {}
    for ours, theirs in layers.items():
        parts = {"scale": "gamma", "bias": "beta"} if theirs.endswith("ln") else {"kernel": "kernel", "bias": "bias"}
        values |= {f"{ours}.{k}": own[f"fit/{theirs}/{v}"] for k, v in parts.items()}
    return values


def _fit(vector: Vector):
    hyper = vector.hyper
    # "(2)1(2)1(1)": local layers in brackets, global ones between them.
    counts = [int(n) for n in re.findall(r"\d+", hyper["layers"])]
    suffix = lambda i: f"_{i}" if i else ""
    attention = {"query": "query", "key": "key", "value": "value", "out": "attention_output"}

    def stack(ours, theirs, count):
        layers = {}
        for i in range(count):
            base, here = f"{theirs}/transformer_encoder{suffix(i)}", f"{ours}.{i}"
            layers |= {f"{here}.norm1": f"{base}/mha/ln", f"{here}.norm2": f"{base}/mlp/ffn/ln"}
            layers |= {f"{here}.attention.{k}": f"{base}/mha/{v}" for k, v in attention.items()}
            layers |= {f"{here}.hidden": f"{base}/mlp/ffn/dense1", f"{here}.down": f"{base}/mlp/ffn/dense2"}
        return layers

    def cross(ours, theirs):
        layers = {f"{ours}.norm": f"{theirs}/cross_mha/ln", f"{ours}.other_norm": f"{theirs}/cross_mha/enc_ln"}
        return layers | {f"{ours}.attention.{k}": f"{theirs}/cross_mha/{v}" for k, v in attention.items()}

    layers = {"stem": "stem", "stem_norm": "stem_ln", "out_norm": "x_output_ln", "latent_out_norm": "l_output_ln"}
    for i, count in enumerate(counts[::2]):
        layers |= stack(f"local_layers.{i}", f"x_network{suffix(i)}", count)
    for i, count in enumerate(counts[1::2]):
        layers |= stack(f"latent_layers.{i}", f"l_network{suffix(i)}", count)
        layers |= cross(f"read.{i}", f"l2x_cross_attn{suffix(i)}") | cross(f"write.{i}", f"x2l_cross_attn{suffix(i)}")

    def call(inputs, params):
        build = lambda: models.FIT(
            inputs["x"].shape[-1],
            features=hyper["x_dim"],
            latent_features=hyper["latent_dim"],
            groups=hyper["num_groups"],
            tokens=inputs["x"].shape[-2],
            latents=hyper["latents_per_group"],
            heads=hyper["x_num_heads"],
            latent_heads=hyper["latent_num_heads"],
            local_layers=counts[::2],
            latent_layers=counts[1::2],
            mlp_ratio=hyper["mlp_ratio"],
            norm=nj.layer_norm(epsilon=hyper["eps"]),
            rngs=nnx.Rngs(0),
        )
        positions = {"positions": "x_pos_emb", "latents": "latent_pos_emb"}
        values = {k: params[f"fit/{v}/kernel/vis_pos_embedding"] for k, v in positions.items()}
        return dict(zip("xl", filled(build, values | _keras(params, layers))(inputs["x"]), strict=True))

    return call


def _wide_net(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        build = lambda: models.WideNet(
            hyper["d"],
            depth=hyper["depth"],
            heads=hyper["heads"],
            experts=hyper["experts"],
            chosen=hyper["top_k"],
            mlp_features=hyper["ffn"],
            norm=nj.layer_norm(epsilon=hyper.get("eps", 1e-6)),
            rngs=nnx.Rngs(0),
        )
        values = {"hidden.kernel": params["w1"], "hidden.bias": params["b1"]}
        values |= {"down.kernel": params["w2"], "down.bias": params["b2"]}
        layers = {"query": "attn.q", "key": "attn.k", "value": "attn.v", "out": "attn.o", "router": "router"}
        for ours, theirs in layers.items():
            values |= linear(params, ours, theirs)
        for i in range(hyper["depth"]):
            values |= norm(params, f"norm1.{i}", f"ln1.{i}") | norm(params, f"norm2.{i}", f"ln2.{i}")
        net = filled(build, values | norm(params, "out_norm", "lnf"))
        # As `net(x)`, with what lies between its depths.
        outputs, x, auxiliary = {}, inputs["x"], 0.0
        for i in range(hyper["depth"]):
            x, loss = net.layer(x, i)
            outputs[f"layer_{i}"], auxiliary = x, auxiliary + loss
        return outputs | {"y": net.out_norm(x), "aux": auxiliary}

    return call


def _linear_attention(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        build = lambda: models.SimplifiedLinearAttention(
            hyper["dim"],
            hyper["num_heads"],
            shape=(hyper["side"], hyper["side"]),
            kernel_size=hyper["kernel_size"],
            epsilon=hyper["eps_den"],
            rngs=nnx.Rngs(0),
        )
        values = {"positions": params["positional_encoding"][0]}
        values |= linear(params, "qkv", "qkv") | linear(params, "out", "proj")
        values |= {"convolution.kernel": jnp.moveaxis(params["dwc.weight"], (0, 1), (3, 2))}
        values |= {"convolution.bias": params["dwc.bias"]}
        return {"y": filled(build, values)(inputs["x"])}

    return call


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"graphtransformer_edge_.*_f32_.*": check(_edge_graph),
    r"hyperconnection_deepseekv4_.*": check(_hyper_connection),
    r"siamesenorm_dit_blocks_f32_.*": check(_siamese),
    r"fit_tf_official_.*": check(_fit),
    r"widenet_shared_block_f32_.*": check(_wide_net),
    r"sla_attn_.*": check(_linear_attention),
    r"residual_gate_musespark_.*": _residual_gate,
    r"graphtransformer_(bn|ln)_.*_f32_.*": check(_graph),
}
