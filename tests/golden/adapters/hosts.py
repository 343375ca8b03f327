"""Adapters of the architectures in `normjax.models` that take their norm as an argument."""

from collections.abc import Callable

from flax import nnx

import normjax as nj
from normjax import models
from tests.golden.adapters._hosts import Arrays, below, check, filled, linear, norm, statistics
from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector


def _graph_values(own: Arrays, ours: str, out: str, hidden: str, norms: str) -> Arrays:
    """Entries of what follows attention on nodes or on edges; `norms` has a place for the number."""
    values = linear(own, f"{ours}.out", out)
    values |= linear(own, f"{ours}.hidden", f"{hidden}1") | linear(own, f"{ours}.down", f"{hidden}2")
    return values | {k: v for i in "12" for k, v in norm(own, f"{ours}.norm{i}", norms.format(i)).items()}


def _graph_attention(own: Arrays) -> Arrays:
    named = {"query": "Q", "key": "K", "value": "V"}
    return {
        k: v
        for ours, theirs in named.items()
        for k, v in linear(own, f"attention.{ours}", f"attention.{theirs}").items()
    }


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


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"graphtransformer_edge_.*": check(_edge_graph),
    r"graphtransformer_(bn|ln)_.*": check(_graph),
}
