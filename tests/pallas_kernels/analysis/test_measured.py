"""The committed measurements meet the bars, and the kernels of today are no worse than they were."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pallas_kernels import analysis
from pallas_kernels.analysis import cases
from pallas_kernels.analysis.gpu import ptxas

ROOT = pathlib.Path(analysis.__file__).parents[2]
NAMES = ("chip", "kernel", "direction", "shape", "implementation")


def committed(name):
    found = json.loads((ROOT / "docs" / name).read_text())
    return found, {tuple(r[k] for k in NAMES): r for r in found["rows"]}


MEASURED, ROWS = committed("pallas_analysis.json")
_, STACK = committed("pallas_stack.json")
TPUS = ("v5e", "v5p", "v6e", "tpu7x")
# Bytes from which a tensor is large.
LARGE = 2**26
# Tensors moved for the norm of a matrix that VMEM does not hold, which anybody reads twice, and of one that it does.
MATRICES = {"project": (3, 2), "update_and_project": (5, 3)}
# XLA rounds and repacks the gradients of many samples' parameters in HBM on a v5p, in VMEM on others.
MANY_SAMPLES = ("v5p", "modulate_layer_norm", "backward", "256x256x1152_bf16", "mosaic_tpu")
# Recompiled by the test: the rows the bars name and one of each other tiling, seconds each.
SUBSET = ["--kernel", "rms_norm", "layer_norm", "norm_add_norm", "qk_norm", "group_norm", "--shape", "8192x4096_bf16"]
SUBSET += ["8192x32+8x128_bf16", "16x64x64x320_g32_bf16", "--implementation"]


def seconds(*key):
    return ROWS[key]["seconds"]


def rows_of(implementation, least=LARGE, **where):
    """Rows of the kernels, without what they refuse."""
    wanted = {"implementation": implementation, **where}
    found = {k: r for k, r in ROWS.items() if all(r[name] == value for name, value in wanted.items())}
    return {k: r for k, r in found.items() if "refused" not in r and r["ideal_bytes"] >= least}


def of_xla(key):
    return ROWS[(*key[:-1], "xla")]


@pytest.mark.parametrize("chip", [*TPUS, "h100"])
def test_every_kernel_compiles_on_every_named_shape(chip):
    implementation = "triton" if chip == "h100" else "mosaic_tpu"
    for kernel in cases.kernels():
        for direction in cases.directions(kernel):
            for shape in cases.shapes(kernel):
                row = ROWS[chip, kernel, direction, shape, implementation]
                assert "error" not in row
                assert "refused" not in row or (chip == "h100" and "a norm of a matrix takes two" in row["refused"])


@pytest.mark.parametrize("chip", TPUS)
def test_large_arrays_are_read_and_written_once(chip):
    large = rows_of("mosaic_tpu", chip=chip)
    assert len(large) > 50
    for key, row in large.items():
        most = 1.035 if key == MANY_SAMPLES else 1.02
        if key[1] in MATRICES and cases.shapes(key[1])[key[3]].axis is None:
            twice, once = MATRICES[key[1]]
            most *= twice / once
        assert row["hbm_bytes"] - row["padding_bytes"] <= most * row["ideal_bytes"], key


def test_only_maps_of_320_channels_are_padded_and_xla_moves_as_much():
    rows = {k: r for chip in TPUS for k, r in rows_of("mosaic_tpu", chip=chip).items()}
    padded = {k: r for k, r in rows.items() if r["padding_bytes"] > 0.02 * r["ideal_bytes"]}
    assert {key[3] for key in padded} == {"16x64x64x320_g32_bf16", "16x64x64x320_g32_f32"}
    for key, row in padded.items():
        assert row["hbm_bytes"] <= 1.01 * of_xla(key)["hbm_bytes"], key


def test_gpu_kernels_spill_nothing_and_move_little():
    assert not [k for k, r in rows_of("triton", least=0).items() if r.get("spills")]
    for key, row in rows_of("triton").items():
        if key[1] in ("group_norm", "instance_norm"):
            # A map is larger than a multiprocessor's memory: x is read twice, and dy.
            assert row["hbm_bytes"] <= {"forward": 1.51, "backward": 1.68}[key[2]] * row["ideal_bytes"], key
            assert row["hbm_bytes"] <= of_xla(key)["hbm_bytes"], key
        else:
            assert row["hbm_bytes"] <= 1.05 * row["ideal_bytes"], key


def test_the_automatic_choice_is_never_worse_than_xla_in_a_stack_on_a_tpu():
    automatic = {k: r for k, r in STACK.items() if k[4] == "automatic"}
    assert {k[1] for k in automatic} >= {"rms_norm", "layer_norm", "add_rms_norm"}
    for key, row in automatic.items():
        assert row["passes_per_layer"] <= STACK[(*key[:-1], "xla")]["passes_per_layer"], key


@pytest.mark.parametrize(
    ("chip", "kernel", "direction", "gain"),
    [
        ("tpu7x", "layer_norm", "backward", 1.3),
        ("tpu7x", "rms_norm", "backward", 1.5),
        # Three passes against two: the bytes of the scale, which both read, keep it from 1.5 by 1e-4.
        ("v5e", "rms_norm", "forward", 1.5 - 1e-3),
        ("v5e", "layer_norm", "forward", 1.5 - 1e-3),
    ],
)
def test_predicted_gains(chip, kernel, direction, gain):
    key = (chip, kernel, direction, "8192x4096_bf16")
    assert seconds(*key, "xla") >= gain * seconds(*key, "mosaic_tpu")


def run(*arguments, **environment):
    command = [sys.executable, "-m", "pallas_kernels.analysis", *arguments]
    # libtpu reads its flags once a process, so the command has its own.
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("chips", "implementation"), [(("v5e", "tpu7x"), "mosaic_tpu"), (("h100",), "triton")], ids=["tpu", "gpu"]
)
def test_no_kernel_got_worse(chips, implementation, tmp_path):
    if not analysis.available(chips[0]):
        pytest.skip(f"the compiler for {chips[0]} is not installed (extras tpu, cuda)")
    path = tmp_path / "now.json"
    ran = run("--chip", *chips, *SUBSET, implementation, "--json", str(path))
    assert ran.returncode == 0, ran.stderr[-2000:]
    now = json.loads(path.read_text())
    assert len(now["rows"]) == 10 * len(chips)
    # Bytes are the kernel's; bundles and registers are the compiler's too, and comparable only within its version.
    compiler = "libtpu" if implementation == "mosaic_tpu" else "jax-cuda13-plugin"
    same = now["versions"].get(compiler) == MEASURED["versions"].get(compiler)
    for row in now["rows"]:
        then = ROWS[tuple(row[k] for k in NAMES)]
        assert row["hbm_bytes"] <= then["hbm_bytes"], row
        assert not same or row["seconds"] <= 1.02 * then["seconds"], row
        assert implementation == "mosaic_tpu" or ptxas() is None or (row["registers"] > 0 and row["spills"] == 0), row


def test_chip_without_its_compiler_is_skipped_in_a_line():
    missing = [c for c in ("v5e", "h100") if not analysis.available(c)]
    if not missing:
        pytest.skip("both compilers are installed")
    ran = run("--chip", *missing)
    assert ran.returncode == 0
    assert [line.split(",")[0] for line in ran.stdout.splitlines()] == [f"{chip}: skipped" for chip in missing]
    with pytest.raises(ModuleNotFoundError, match=r"pip install .normjax\["):
        analysis.analyse(lambda: None, (), missing[0])
