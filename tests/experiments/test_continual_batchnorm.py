"""AdaB²N against other norms with replay, from end to end: streams, what is refused, resumption, the numbers."""

import json
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.checkpoints import Checkpoints
from experiments.continual_batchnorm import Config, report, run, summary
from experiments.continual_batchnorm.arms import ARMS
from experiments.continual_batchnorm.stream import make_stream, split
from experiments.continual_batchnorm.training import all_runs, make_trainer
from experiments.data import Images, load

SIZES: dict[str, Any] = {"dataset": "digits", "tasks": 2, "train_per_class": 4, "held_out_per_class": 2, "buffer": 16}
TINY = SIZES | {"width": 4, "groups": 2, "stride": 2, "seeds": 2, "learning_rates": (0.1,)}
TINY |= {"auxiliary_weights": (0.0, 1.0)}
ARM = "adab2n"


@pytest.fixture(scope="module")
def learned(data_dir):
    """The runs and the trainer of the tiny setting, compiled once, and the states before, between and after tasks."""
    config = Config(**TINY)
    parts = split(load("digits", data_dir=data_dir), config)
    runs, trainer = all_runs(ARM, config, parts.train.labels), make_trainer(ARMS[ARM], config, parts)
    states = [trainer.init(runs)]
    for task in range(2):
        states.append(trainer.learn(states[-1], runs, jnp.int32(task))[0])
    return trainer, states


def _run(learned, config):
    with pytest.MonkeyPatch.context() as patch:
        # Not `experiments.continual_batchnorm.run`, which is the function. The trainer is that of the same arguments.
        patch.setattr(sys.modules[run.__module__], "make_trainer", lambda *arguments: learned[0])
        return run(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, learned):
    out = tmp_path_factory.mktemp("results")
    return _run(learned, Config(arms=(ARM,), out=out, run="tiny", data_dir=data_dir, **TINY))


def test_outputs_of_a_run(finished):
    config = runs.from_json(Config, json.loads((finished / "config.json").read_text())["config"])
    assert config == Config(arms=(ARM,), data_dir=config.data_dir, out=config.out, run="tiny", **TINY)
    lines = records.read_lines(finished / "metrics.jsonl")
    assert [(line["arm"], line["task"]) for line in lines] == [(ARM, 0), (ARM, 1)]
    assert np.shape(lines[0]["test"]) == (4, 2)
    assert np.shape(lines[0]["loss"]) == (4,)
    assert 0 < np.min([line["loss"] for line in lines]) < np.log(10) * 2
    (row,) = json.loads((finished / "summary.json").read_text())["rows"]
    chosen = int(row["auxiliary_weight"] == 1.0)
    final = np.array(lines[1]["test"]).reshape(2, 2, 2)[chosen]
    np.testing.assert_allclose(row["accuracy"]["mean"], final.mean())
    assert row["versus_bn"] is None
    assert "AdaB²N" in (finished / "summary.md").read_text()
    assert (finished / "figure.png").stat().st_size > 10_000


def test_resumed_after_a_kill_gives_the_same_numbers(finished, learned, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut, ignore=shutil.ignore_patterns("checkpoints", "summary*", "figure*"))
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    # As if killed while the second task was being recorded.
    (cut / "metrics.jsonl").write_text(lines[0] + lines[1][:20])
    with Checkpoints(cut / "checkpoints") as checkpoints:
        checkpoints.save(0, 1, jax.tree.leaves(learned[1][1]))
    _run(learned, Config(resume=cut))
    assert (cut / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    assert (cut / "summary.json").read_text() == (finished / "summary.json").read_text()


def test_stream():
    config = Config(tasks=2, batch_size=4, replay=3, buffer=5)
    labels = np.repeat(np.arange(10, dtype=np.int32), 4)
    stream = make_stream(labels, config, 0)
    assert stream.batches.shape == (2, 5, 7)
    new, replayed = stream.batches[..., :4], stream.batches[..., 4:]
    assert sorted(new.reshape(-1)) == list(range(40))
    assert (stream.task_of_class[labels[new]] == np.arange(2)[:, None, None]).all()
    assert set(replayed[0, 0]) <= set(new[0, 0])
    flat_new, flat_replayed = new.reshape(10, 4), replayed.reshape(10, 3)
    for step in range(1, 10):
        assert set(flat_replayed[step]) <= set(flat_new[:step].reshape(-1))
        assert len(set(flat_replayed[step])) == 3
    assert (stream.task_of_class[labels[replayed[1]]] == 0).any()
    np.testing.assert_array_equal(make_stream(labels, config, 0).batches, stream.batches)
    assert (make_stream(labels, config, 1).batches != stream.batches).any()


def test_reservoir_is_uniform():
    # A reservoir of one after 20 images holds each with chance 1/20: 600 draws have 30 of each, deviation 5.3.
    config = Config(tasks=2, batch_size=1, replay=1, buffer=1)
    labels = np.repeat(np.arange(2, dtype=np.int32), 11)
    held = []
    for seed in range(600):
        batches = make_stream(labels, config, seed).batches.reshape(-1, 2)
        held.append(int(np.flatnonzero(batches[:20, 0] == batches[20, 1])[0]))
    counts = np.bincount(held, minlength=20)
    assert abs(counts - 30).max() < 5 * 5.3


def test_split_is_balanced_and_disjoint():
    images = Images(np.arange(120, dtype=np.uint8).reshape(120, 1, 1, 1), np.repeat(np.arange(10, dtype=np.int32), 12))
    parts = split(images, Config(train_per_class=6, held_out_per_class=3))
    assert [np.bincount(part.labels).tolist() for part in parts] == [[6] * 10, [3] * 10, [3] * 10]
    assert len(set(np.concatenate([part.images.reshape(-1) for part in parts]))) == 120
    with pytest.raises(UsageError, match="has 12 images, fewer than --train-per-class 6"):
        split(images, Config(train_per_class=6, held_out_per_class=4))
    with pytest.raises(UsageError, match="10 classes; --tasks must divide them, got 3"):
        split(images, Config(train_per_class=6, held_out_per_class=3, tasks=3))


def test_summary_of_known_numbers():
    config = Config(arms=("bn", "gn"), tasks=2, seeds=2, learning_rates=(0.1, 0.2))

    def record(arm, task, accuracies):
        return {"arm": arm, "task": task, "loss": [1.0, None, 1.0, 1.0], "validation": accuracies, "test": accuracies}

    zero = [[0.0, 0.0], [0.0, 0.0]]
    rows = [
        record("bn", 0, [*zero, [0.9, 0.0], [0.7, 0.0]]),
        record("bn", 1, [*zero, [0.6, 0.8], [0.5, 0.7]]),
        record("gn", 0, [[0.9, 0.0], [0.9, 0.0], *zero]),
        record("gn", 1, [[0.8, 0.8], [0.7, 0.7], *zero]),
    ]
    found = summary.collect(rows, config)
    assert found["bn"]["test"].shape == (2, 2, 2, 2)
    assert np.isnan(found["bn"]["loss"][0, 0, 1])
    bn, gn = summary.summarize(found, config)
    assert (bn.learning_rate, gn.learning_rate, bn.versus_bn) == (0.2, 0.1, None)
    np.testing.assert_allclose([bn.accuracy.mean, bn.forgetting.mean, bn.learned.mean], [0.65, 0.25, 0.775])
    assert gn.versus_bn is not None
    np.testing.assert_allclose([gn.versus_bn.mean, gn.forgetting.mean], [0.1, 0.15])
    assert report._cells(gn)[5] == "0.1*"


def test_settings_of_arms():
    config = Config(learning_rates=(0.1, 0.2), auxiliary_weights=(0.0, 1.0))
    assert config.settings("bn") == [(0.1, 0.0), (0.2, 0.0)]
    assert config.settings("adab2n") == [(0.1, 0.0), (0.1, 1.0), (0.2, 0.0), (0.2, 1.0)]
    runs = all_runs("adab2n", config, np.repeat(np.arange(10, dtype=np.int32), 4))
    assert runs.learning_rate.tolist() == pytest.approx([0.1] * 10 + [0.2] * 10)
    np.testing.assert_array_equal(runs.batches[:5], runs.batches[15:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"arms": ("ln",)}, "--arms takes different ones of bn"),
        ({"arms": ()}, "got none"),
        ({"tasks": 1}, "--tasks must be at least 2, got 1"),
        ({"groups": 3}, "--groups must be a divisor of --width 8, got 3"),
        ({"replay": 11}, "--replay must be at most --batch-size 10"),
        ({"buffer": 9}, "--buffer must be at least --replay 10"),
        ({"devices": 2}, "--seeds must be a multiple of --devices 2"),
        ({"kappa": 1.5}, "--kappa must be between 0 and 1"),
        ({"learning_rates": (0.1, -1.0)}, "--learning-rates must be different, positive"),
        ({"auxiliary_weights": ()}, "--auxiliary-weights must be different, at least 0"),
        ({"run": "a/b"}, "--run is the name of a folder"),
    ],
)
def test_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        Config(**flags)


def test_resume_refuses(finished, learned, tmp_path, capsys):
    with pytest.raises(UsageError, match="holds no run to resume"):
        run(Config(resume=tmp_path))
    (tmp_path / "config.json").write_text('{"experiment": "plasticity"}')
    with pytest.raises(UsageError, match="was not written by this experiment"):
        run(Config(resume=tmp_path))
    with pytest.raises(UsageError, match=r"differ from --kappa 0\.5"):
        runs.check_resumable(Config(resume=tmp_path, kappa=0.5), Config())
    with pytest.raises(UsageError, match="unknown fields kapa"):
        runs.from_json(Config, {"kapa": 0.5})
    with pytest.raises(UsageError, match="holds a run already"):
        _run(learned, Config(arms=(ARM,), out=finished.parent, run="tiny", **TINY))
    assert main(["continual_batchnorm", "--devices", "99", "--seeds", "99", "--out", str(tmp_path)]) == 2
    assert "--devices 99, but there are" in capsys.readouterr().err


def test_auxiliary_loss_and_task_weights(learned):
    """From the second task on, task weights are trained and the auxiliary loss changes what is learned; not before."""
    weights = [np.asarray(params["stem_norm"]["task_weight"][...]) for params, _ in learned[1]]
    without, with_loss = slice(0, 2), slice(2, 4)
    np.testing.assert_array_equal(weights[0], np.zeros((4, 2)))
    np.testing.assert_array_equal(weights[1][without], weights[1][with_loss])
    assert (weights[2] != 0).all()
    assert (weights[2][without] != weights[2][with_loss]).any(axis=1).all()
    assert learned[1][2][1]["stem_norm"]["current_task"][...].tolist() == [1] * 4
