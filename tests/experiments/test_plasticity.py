"""The command from end to end: what it refuses, what it writes, and what a kill leaves."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.data import preflight
from experiments.plasticity import Config, sweep
from experiments.plasticity.arms import ARMS
from experiments.plasticity.figure import STYLES
from experiments.plasticity.training import METRICS

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ["--images", "32", "--steps", "2", "--batch-size", "16", "--width", "8", "--depth", "1", "--seeds", "2"]


def _main(*arguments):
    return main(["plasticity", *TINY, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two arms and the fresh reference at one rate."""
    out = tmp_path_factory.mktemp("results")
    flags = ("--tasks", 6, "--learning-rate", 0.01, "--out", out, "--run", "tiny")
    assert _main(*flags, "--arms", "ln", "nap_decay_readout", "fresh") == 0
    return out / "tiny"


def test_outputs_of_a_run(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored["config"]["tasks"] == 6
    assert stored["config"]["arms"] == ["ln", "nap_decay_readout", "fresh"]
    assert {"python", "jax", "optax"} <= set(stored["environment"]["versions"])
    assert stored["environment"]["device"]["platform"] == "cpu"
    assert runs.from_json(Config, stored["config"]).images == 32

    lines = records.read_lines(finished / "metrics.jsonl")
    assert [(r["arm"], r["task"]) for r in lines] == [(arm, t) for arm in stored["config"]["arms"] for t in range(6)]
    assert all(set(METRICS) <= set(r) and all(len(r[name]) == 2 for name in METRICS) for r in lines)

    summary = json.loads((finished / "summary.json").read_text())
    assert [row["arm"] for row in summary["rows"]] == stored["config"]["arms"]
    first, last = lines[0]["online_accuracy"], lines[5]["online_accuracy"]
    assert summary["rows"][0]["change"]["mean"] == pytest.approx(np.mean(last) - np.mean(first), rel=1e-9)
    table = (finished / "summary.md").read_text()
    assert all(ARMS[arm].label in table for arm in stored["config"]["arms"])
    assert "±" in table
    image = (finished / "figure.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 20_000


def test_the_written_configuration_is_the_configuration(tmp_path):
    config = Config(data_dir=tmp_path, arms=("ln",), learning_rates=(0.1,), learning_rate=0.1, run="x")
    assert runs.from_json(Config, json.loads(json.dumps(records.plain(config)))) == config


def test_a_run_is_not_overwritten(finished, capsys):
    assert _main("--learning-rate", 0.01, "--out", finished.parent, "--run", "tiny") == 2
    assert f"--resume {finished}" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    assert main(["plasticity", "--resume", str(finished)]) == 0
    assert {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


def test_resume_after_kill_is_bit_equal(tmp_path):
    arms = ["ln", "nap_decay_readout"]
    flags = ["--tasks", "200", "--checkpoint-every", "25", "--learning-rate", "0.01", "--arms", *arms]
    command = [sys.executable, "-m", "experiments", "plasticity", *TINY, *flags, "--out", str(tmp_path)]
    # Standard promotion and no other flags, as a user's process: only then are both compiled to the same program.
    killed = tmp_path / "killed"
    with subprocess.Popen([*command, "--run", "killed"], cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        # In the middle of the second arm, past its first checkpoint.
        while len(_lines(killed)) < 230 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    reported = _lines(killed)
    assert 230 <= len(reported) < 400
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "nap_dec')  # what a kill in the middle of a write would leave
    assert main(["plasticity", "--resume", str(killed)]) == 0
    assert _lines(killed)[: len(reported)] == reported

    assert main([*command[3:], "--run", "whole"]) == 0
    for name in ("metrics.jsonl", "summary.json", "summary.md"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def _lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_resume_refuses_other_settings_and_other_folders(finished, tmp_path, capsys):
    assert main(["plasticity", "--resume", str(finished), "--tasks", "7"]) == 2
    assert "--tasks 7" in capsys.readouterr().err
    assert main(["plasticity", "--resume", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_sweep_is_written_and_read(tmp_path, capsys):
    file = tmp_path / "sweep.json"
    flags = ("--tasks", 3, "--arms", "ln", "--out", tmp_path, "--sweep-file", file)
    assert _main(*flags, "--run", "sweep", "--sweep", "--learning-rates", 0.01, 0.001) == 0
    content = json.loads(file.read_text())
    assert [(r["arm"], r["learning_rate"]) for r in content["results"]] == [("ln", 0.001), ("ln", 0.01)]
    assert {"device", "versions", "commit", "command"} <= set(content["recorded"])
    assert content["setting"]["first_seed"] == sweep.SEED_OFFSET
    assert _main(*flags, "--run", "best") == 0
    stored = json.loads((tmp_path / "best" / "config.json").read_text())
    best = sweep.best_rates(content, ["ln"])
    assert {job["arm"]: job["learning_rate"] for job in stored["jobs"]} == best
    assert "The whole sweep" in (tmp_path / "best" / "summary.md").read_text()
    assert "edge of the grid" in (tmp_path / "best" / "summary.md").read_text()
    capsys.readouterr()
    assert _main(*flags, "--run", "more", "--arms", "ln", "plain") == 2
    assert "'plain'; it has ln" in capsys.readouterr().err


def test_recorded_command_says_nothing_about_places():
    arguments = ["plasticity", "--out", "/a/b", "--tasks", "3", "--data_dir=/c", "--arms", "ln", "nap", "--run", "x"]
    assert runs.command(arguments) == "python -m experiments plasticity --tasks 3 --arms ln nap"


def _content(*results):
    entries = [{"arm": a, "learning_rate": r, "online_accuracy": {"mean": m}} for a, r, m in results]
    return {"dataset": "digits", "results": entries}


def test_best_rate_is_the_highest_mean_and_the_smaller_of_equals():
    content = _content(("ln", 0.1, 0.5), ("ln", 0.01, 0.7), ("nap", 0.1, 0.6), ("nap", 0.01, 0.6))
    assert sweep.best_rates(content, ["nap", "ln"]) == {"nap": 0.01, "ln": 0.01}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"dataset": "digits", "results": []}'])
def test_broken_sweep_file(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a sweep file"):
        sweep.read(path, "digits")


def test_sweep_of_another_dataset(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(_content(("ln", 0.1, 0.5))))
    with pytest.raises(UsageError, match="sweep of dataset 'digits', got --dataset 'mnist'"):
        sweep.read(path, "mnist")


def test_committed_sweeps_cover_every_arm_on_one_grid():
    files = sorted(sweep.FOLDER.glob("plasticity_*.json"))
    assert sweep.default_file("digits") in files
    for path in files:
        content = sweep.read(path, path.stem.removeprefix("plasticity_"))
        swept = {(r["arm"], r["learning_rate"]) for r in content["results"]}
        rates = {rate for _, rate in swept}
        assert swept == {(arm, rate) for arm in ARMS for rate in rates}, path.name
        assert set(sweep.best_rates(content, ARMS)) == set(ARMS)


def test_every_arm_has_a_style():
    assert set(STYLES) == set(ARMS)
    assert len(set(map(str, STYLES.values()))) == len(ARMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("ln", "foo")}, r"different ones of plain, ln, .*; got ln foo"),
        ({"arms": ()}, "got none"),
        ({"arms": ("ln", "ln")}, "got ln ln"),
        ({"learning_rate": -1.0}, "--learning-rate must be positive and finite, got -1.0"),
        ({"learning_rates": (0.1, float("nan"))}, "--learning-rate must be positive and finite, got nan"),
        ({"learning_rates": ()}, "one or more different rates"),
        ({"tasks": 0}, "--tasks must be at least 1, got 0"),
        ({"seeds": -2}, "--seeds must be at least 1, got -2"),
        ({"first_seed": -1}, "--first-seed must be at least 0, got -1"),
        ({"batch_size": 600}, "--batch-size 600 is larger than --images 512"),
        ({"weight_decay": -0.1}, "--weight-decay must be finite and at least 0, got -0.1"),
        ({"l2_init": 2.0}, "--l2-init must be between 0 and 1, got 2.0"),
        ({"sweep": True, "learning_rate": 0.1}, "drop --learning-rate 0.1"),
        ({"sweep": True, "arms": ("ln",)}, "with other arms than the default .* --sweep-file"),
        ({"sweep": True, "quick": True, "tasks": 3}, "with other quick, tasks than the default"),
        ({"run": "../elsewhere"}, "name of a folder in --out"),
    ],
)
def test_bad_configuration_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Config(), **change)


def test_quick_is_fewer_tasks_and_seeds():
    quick, full = Config(quick=True).resolved(), Config()
    assert quick.tasks < full.tasks
    assert quick.seeds < full.seeds
    assert dataclasses.replace(Config(quick=True), tasks=3).resolved().tasks == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["juggling"], "Unknown experiment 'juggling'; there are: plasticity"),
        (["plasticity", "--dataset", "cifar11"], "Unknown dataset 'cifar11'.*Did you mean"),
        (["plasticity", "--dataset", "cifar11", "--learning-rate", "0.1"], "Unknown dataset 'cifar11'"),
        (["plasticity", "--images", "1800", "--learning-rate", "0.1"], r"it has the splits train \(1797\)"),
    ],
)
def test_command_line_errors_are_one_message(arguments, message, capsys, tmp_path):
    assert main([*arguments, *(["--out", str(tmp_path)] if arguments[0] == "plasticity" else [])]) == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_any_tfds_name_takes_the_same_path(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda url: True)
    flags = ("--dataset", "cifar10", "--learning-rate", 0.01, "--tasks", 2, "--arms", "ln")
    with tfds.testing.mock_data(num_examples=32):
        assert _main(*flags, "--data-dir", tmp_path / "data", "--out", tmp_path, "--run", "cifar") == 0
    assert [(r["arm"], r["task"]) for r in records.read_lines(tmp_path / "cifar" / "metrics.jsonl")] == [
        ("ln", 0),
        ("ln", 1),
    ]
    assert "32 cifar10 images" in (tmp_path / "cifar" / "summary.md").read_text()


def test_a_dataset_without_a_sweep_borrows_the_rates_of_digits_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "FOLDER", tmp_path)
    digits = {arm: {"mean": 0.5, "half_width": 0.1} for arm in ("ln", "nap")}
    results = [
        {"arm": arm, "learning_rate": rate, "online_accuracy": score, "change": score}
        for (arm, score), rate in zip(digits.items(), (0.01, 0.1), strict=True)
    ]
    recorded = {"versions": {}, "device": {"kind": "cpu"}, "commit": None, "command": ""}
    file = {"dataset": "digits", "results": results, "selection": "", "setting": {}, "recorded": recorded}
    records.write_json(sweep.default_file("digits"), file)
    flags = ("--tasks", 2, "--arms", "ln", "nap", "--out", tmp_path)
    assert _main(*flags, "--dataset", "mnist", "--run", "borrowed") == 0
    stored = json.loads((tmp_path / "borrowed" / "config.json").read_text())
    assert {job["arm"]: job["learning_rate"] for job in stored["jobs"]} == {"ln": 0.01, "nap": 0.1}
    printed = " ".join(capsys.readouterr().out.split())
    assert "no learning-rate sweep of mnist is committed: every arm runs at its best rate on digits" in printed
    table = (tmp_path / "borrowed" / "summary.md").read_text()
    assert "swept on digits, not on mnist," in table
    assert "The whole sweep, on digits" in table
    records.write_json(sweep.default_file("mnist"), file | {"dataset": "mnist", "results": results[::-1]})
    assert _main(*flags, "--dataset", "mnist", "--run", "own", "--arms", "ln") == 0
    assert "no learning-rate sweep" not in capsys.readouterr().out
    assert "not on mnist" not in (tmp_path / "own" / "summary.md").read_text()
    assert _main(*flags, "--dataset", "mnist", "--sweep-file", tmp_path / "none.json", "--run", "named") == 2
    assert "No learning-rate sweep for dataset 'mnist'" in capsys.readouterr().err


def test_a_dataset_that_cannot_be_downloaded_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "answers", lambda url: False)
    assert _main("--dataset", "svhn_cropped", "--data-dir", tmp_path / "data", "--out", tmp_path / "out") == 2
    assert "--dataset digits or --dataset mnist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_arm_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plasticity", "--arms", "ln", "foo"])
    assert stopped.value.code == 2
    assert "got ln foo" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_help_lists_the_experiments(capsys):
    assert main([]) == 0
    assert "experiments: plasticity" in capsys.readouterr().out
