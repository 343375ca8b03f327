"""The throughput command: two models that are one function, timed in turn."""

import json

import pytest
from flax import nnx

import normjax as nj
from experiments import throughput
from experiments.training_steps import language_model


def test_small_run(tmp_path, monkeypatch):
    path = tmp_path / "throughput.json"
    config = throughput.Config(rounds=2, layers=1, width=8, length=8, batch_size=2, out=path)
    monkeypatch.setattr(throughput, "ALLOWED", 0.0)  # two rounds of microseconds may say anything
    throughput.run(config)
    monkeypatch.setattr(throughput, "ALLOWED", 1e6)
    with pytest.raises(SystemExit, match="1"):
        throughput.run(config)
    result = json.loads(path.read_text())
    assert set(result["tokens_per_second"]) == {"normjax", "flax"}
    assert min(result["tokens_per_second"].values()) > 0


def test_every_norm_is_exchanged():
    model = language_model(nj.placements.pre(nj.rms_norm()), layers=2, width=8)
    assert sum(isinstance(node, nj.nnx.Norm) for _, node in nnx.iter_graph(model)) == 5
    throughput.with_flax_norms(model, 1e-6)
    kinds = [type(node) for _, node in nnx.iter_graph(model)]
    assert nj.nnx.Norm not in kinds
    assert kinds.count(nnx.RMSNorm) == 5
