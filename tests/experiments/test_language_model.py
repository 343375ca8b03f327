"""The language-model experiment from end to end: what it refuses, writes, resumes, and what its numbers mean."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.data import text
from experiments.language_model import Config, arms, run, summary
from experiments.language_model.ahead_of_time import count_collectives
from experiments.language_model.config import LARGE
from experiments.language_model.training import METRICS

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {"layers": 2, "width": 16, "heads": 2, "length": 8, "batch_size": 8, "validation_windows": 8}
TINY = SIZES | {"steps": 4, "chunk": 2, "warmup": 1, "seeds": 2, "checkpoint_every": 1, "scan": True}
ARM = "peri+nap"


@pytest.fixture(scope="module", autouse=True)
def _library(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    for i in range(60):
        (root / f"module_{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_library", lambda: root)
        yield


@pytest.fixture(scope="module", autouse=True)
def _trainers():
    """Compiled once for all runs here whose programs are the same: they differ in mesh and rates alone."""
    module = sys.modules[run.__module__]
    make, made = module.make_trainer, {}

    def once(arm, config, mesh):
        key = arm, mesh, config.rates
        if key not in made:
            made[key] = make(arm, config, mesh)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        # Not `experiments.language_model.run`, which is the function.
        patch.setattr(module, "make_trainer", once)
        yield


def _run(out, name, **more):
    config = Config(arms=(ARM,), data_dir=out / "data", out=out, run=name, **(TINY | more))
    return run(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _library, _trainers):
    with jax.numpy_dtype_promotion("standard"):
        return _run(tmp_path_factory.mktemp("results"), "tiny")


def test_outputs_of_a_run(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert runs.from_json(Config, stored["config"]).arms == (ARM,)
    assert len(stored["text"]["sha256"]) == 64
    lines = records.read_lines(finished / "metrics.jsonl")
    assert [(r["arm"], r["chunk"]) for r in lines] == [(ARM, 0), (ARM, 1)]
    assert set(METRICS) <= set(lines[0])
    assert np.shape(lines[0]["loss"]) == (4, 2)
    assert np.shape(lines[0]["gradient"]) == (4, 2)
    rows = json.loads((finished / "summary.json").read_text())["rows"]
    assert [row["learning_rate"] for row in rows] == [3e-3, 3e-2]
    last = np.array(lines[1]["validation"])
    assert rows[0]["validation"]["mean"] == pytest.approx(last[:2].mean(), rel=1e-9)
    assert rows[1]["validation"]["mean"] == pytest.approx(last[2:].mean(), rel=1e-9)
    # Logits of unit variance cost half a nat over the eight bits of random bytes; batches this small scatter.
    assert 7 < np.mean(np.array(lines[0]["loss"])[:, 0]) < 11
    assert "±" in (finished / "summary.md").read_text()
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_continues_bit_for_bit(finished, tmp_path, monkeypatch):
    append = records.append_line

    def interrupted(path, record):
        if record["chunk"] == 1:
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(records, "append_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, "tiny")
    monkeypatch.undo()
    assert len(records.read_lines(tmp_path / "tiny" / "metrics.jsonl")) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_library", lambda: pytest.fail("prepared again"))
        run(Config(resume=tmp_path / "tiny"))
    for name in ("metrics.jsonl", "summary.json"):
        assert (tmp_path / "tiny" / name).read_text() == (finished / name).read_text()


def test_a_mesh_changes_nothing(finished, tmp_path):
    # The low rate alone: the runs of one arm do not know of each other.
    folder = _run(tmp_path, "mesh", mesh="mixed", high_rate=1.0)
    expected, found = (records.read_lines(f / "metrics.jsonl") for f in (finished, folder))
    for before, after in zip(expected, found, strict=True):
        for name in ("loss", "validation"):
            # Bits per byte after at most four steps of sums in another order; the bar is 1e-5 after ten.
            np.testing.assert_allclose(after[name], before[name][:2], rtol=0, atol=1e-5)


def test_a_run_is_not_overwritten_or_resumed_as_another(finished, capsys):
    assert main(["language_model", "--out", str(finished.parent), "--run", "tiny"]) == 2
    assert f"--resume {finished}" in capsys.readouterr().err
    assert main(["language_model", "--resume", str(finished), "--width", "32"]) == 2
    assert "differ from --width 32" in capsys.readouterr().err
    assert main(["language_model", "--resume", str(finished / "nothing")]) == 2
    assert "holds no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"arms": ()}, "one or more different arms"),
        ({"arms": ("perri",)}, "an arm is PLACEMENT, PLACEMENT/NORM"),
        ({"arms": ("pre/batch",)}, "norms: rms, layer, crms, dyt"),
        ({"arms": ("pre+nap",)}, "makes no matrix scale-invariant.*--qk-norm"),
        ({"arms": ("peri/dyt+nap",)}, "makes no matrix scale-invariant"),
        ({"heads": 3}, "a divisor of half the width"),
        ({"steps": 30, "chunk": 20}, "must be a multiple of --chunk 20"),
        ({"steps": 20, "warmup": 20}, "more than --warmup 20"),
        ({"high_rate": 0.5}, "--high-rate must be finite and at least 1, got 0.5"),
        ({"run": "a/b"}, "name of a folder"),
    ],
)
def test_what_cannot_be_run_is_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        Config(**flags)


def test_presets_fill_in_what_is_left_at_its_default():
    large = Config(preset="400m", batch_size=64).resolved()
    assert large.batch_size == 64
    assert {name: getattr(large, name) for name in LARGE if name != "batch_size"} == {
        name: value for name, value in LARGE.items() if name != "batch_size"
    }
    assert large.rates == (2e-4,)
    assert Config(quick=True).resolved().steps == 40


def test_nap_holds_what_placement_and_norm_make_invariant():
    config = Config()
    held = {name: set(arms.invariant(arms.parse(name), arms.stack(arms.parse(name), config))) for name in arms.DEFAULT}
    block = "stack/blocks/0"
    assert f"{block}/ffn/branch/down/kernel" in held["peri+nap"]
    assert f"{block}/attention/branch/query/kernel" in held["hybrid+nap"]
    assert held["pre"] == held["post"] == held["pre/dyt"] == set()
    heads = arms.stack(arms.parse("pre/dyt"), Config(qk_norm=True))
    kernels = {path.split("/")[-2] for path in arms.invariant(arms.parse("pre/dyt"), heads)}
    assert kernels == {"query", "key"}


def test_rises_are_measured_against_the_median_before():
    losses = np.full((40, 2), 3.0)
    losses[20, 0], losses[30:, 1] = 5.5, np.nan
    risen = summary.rises(losses)
    assert risen[20, 0] == 2.5
    assert np.all(risen[21:, 0] == 0)
    assert np.all(np.isinf(risen[30:, 1]))
    assert np.all(risen[: summary.SPIKE_WINDOW] == 0)


def test_collectives_are_counted_once():
    hlo = """
      %a = (f32[8]) all-gather-start(%x), replica_groups={}
      %b = f32[64] all-gather-done(%a)
      %c = f32[8] all-reduce(%y), to_apply=%add
    """
    assert count_collectives(hlo) == {"all-reduce": 1, "all-gather": 1}


EXPECTED = {
    "data": {"all-reduce"},
    "fsdp": {"all-gather", "all-reduce", "all-to-all"},
    "tensor": {"all-reduce"},
    "mixed": {"all-gather", "all-reduce", "all-to-all", "collective-permute"},
}
PROGRAM = """
import dataclasses, json
from experiments.language_model import Config, arms
from experiments.language_model.ahead_of_time import compile_chunk, devices

sizes = {"layers": 2, "width": 128, "batch_size": 16, "seeds": 1, "high_rate": 1.0, "model_axis": 4}
config = Config(scan=True, remat=True, **sizes)
targets = devices("v5e:4x4")
assert len(targets) == 16
found = {}
for mesh in ("data", "fsdp", "tensor", "mixed"):
    program = compile_chunk(dataclasses.replace(config, mesh=mesh), arms.parse("peri+nap"), targets)
    found[mesh] = [program.state_bytes, sorted(program.collectives)]
print(json.dumps(found))
"""


LARGE_PROGRAM = """
import dataclasses, json
import jax
from experiments.language_model import Config, arms
from experiments.language_model.ahead_of_time import compile_chunk, devices
from experiments.language_model.training import all_runs, make_trainer

arm, targets = arms.parse("pre+nap"), devices("v5e:4x4")
config = Config(preset="400m", compile_for="v5e:4x4").resolved()
whole = jax.eval_shape(make_trainer(arm, config)[0].init, all_runs(config))
found = {"whole": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(whole))}
for mesh in ("tensor", "mixed"):
    program = compile_chunk(dataclasses.replace(config, mesh=mesh), arm, targets)
    found[mesh] = [program.state_bytes, program.working_bytes, sorted(program.collectives)]
print(json.dumps(found))
"""
for_a_slice = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def in_its_own_process(program):
    """What the program prints last; whoever loads libtpu first in a process decides on its flags."""
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@for_a_slice
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="minutes of compiling; run at night")
def test_the_large_preset_fits_a_slice_cut_within_layers():
    """Two devices share each layer under `tensor`, all sixteen under `mixed`; a v5e has 16 GB."""
    found = in_its_own_process(LARGE_PROGRAM)
    for mesh, parts, kinds in (
        ("tensor", 2, {"all-reduce"}),
        # A device passes its part of a matrix or its gradient around while it multiplies: no all-to-all of streams.
        ("mixed", 16, {"all-gather", "all-reduce", "collective-permute"}),
    ):
        state, working, collectives = found[mesh]
        assert set(collectives) == kinds, mesh
        # Scales of norms and the telemetry of each matrix are whole.
        assert found["whole"] / parts <= state < 1.01 * found["whole"] / parts, mesh
        assert state + working < 16e9, mesh


@for_a_slice
def test_a_slice_of_sixteen_gets_the_collectives_expected():
    found = in_its_own_process(PROGRAM)
    assert {mesh: set(kinds) for mesh, (_, kinds) in found.items()} == EXPECTED
    sizes = {mesh: size for mesh, (size, _) in found.items()}
    assert sizes["fsdp"] < sizes["data"] / 8
    assert sizes["mixed"] < sizes["tensor"] < sizes["data"]
