"""The bench's machinery on the CPU; its figures are for GPUs."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.analysis import cases
from pallas_kernels.bench import __main__ as bench
from pallas_kernels.bench import peers, timing
from pallas_kernels.bench.compositions import composed

SMALL = ["--device", "cpu", "--small", "--rounds", "2", "--milliseconds", "0.1"]


def test_one_run_writes_every_candidate(tmp_path, monkeypatch, capsys):
    absent = {"quack": lambda *_: peers.jax_candidate(None, {}, "forward", saves=False)}
    monkeypatch.setattr(peers, "PEERS", {"flax": peers.flax} | absent)
    path = tmp_path / "bench.json"
    assert bench.main([*SMALL, "--kernel", "rms_norm", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"] == jax.devices("cpu")[0].device_kind
    assert {(r["direction"], r["name"]) for r in found["rows"]} == {
        (d, n) for d in ("forward", "backward") for n in ("copy", "xla", "automatic", "flax", "quack")
    }
    for row in found["rows"]:
        assert ("why" in row) == (row["name"] == "quack")
        assert "why" in row or (row["us"] > 0 and row["of copy"] > 0 and row["of xla"] > 0)
    assert "quack: " in capsys.readouterr().out


def test_a_kernel_of_other_arrays_without_peers_is_timed_too(monkeypatch, capsys):
    monkeypatch.setattr(peers, "PEERS", {"flax": peers.flax})
    assert bench.main([*SMALL, "--kernel", "project"]) == 0
    out = capsys.readouterr().out
    for name in ("copy", "xla", "automatic"):
        assert f"project  small  forward    {name} " in out
    assert "flax: NotApplicableError: no plain functions make project" in out


def test_compositions_of_plain_layers_compute_what_the_kernels_do(rng):
    alone = {"crms_norm", "quantized_rms_norm", "project", "update_and_project"}
    for kernel in set(bench.KERNELS) - alone:
        shape = bench.SMALL[type(next(iter(cases.shapes(kernel).values())))]
        call, args = cases.call_on(kernel, shape, "xla")
        arrays = [jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in args.values()]
        ours, theirs = (jax.jit(f)(*arrays) for f in (call, composed(peers.flax_layers(), kernel, shape)))
        # Flax's variance is E[x²] − E[x]²; kernels of feature maps have an epsilon of 1e-5 where all others have 1e-6.
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4, err_msg=kernel)


def test_machine_without_the_device_says_so(capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has a GPU")
    assert bench.main(["--device", "gpu"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_candidates_take_turns():
    calls = []
    make = lambda name, wait: timing.Candidate(lambda: calls.append(name), lambda _: time.sleep(wait))
    found = timing.medians({"slow": make("slow", 0.02), "fast": make("fast", 0.001)}, rounds=4, least_seconds=0.0)
    assert found["slow"] > found["fast"] >= 0.001
    # Five calls of each to warm up and to count, then one a round, each round begun by the other.
    assert calls[10:] == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
