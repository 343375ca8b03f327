"""Norms of image networks, from end to end: sets, corruptions, what is refused, resumption, sweeps, the numbers."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.checkpoints import Checkpoints
from experiments.data import Images
from experiments.image_classification import Config, figure, run, summary, sweep, training
from experiments.image_classification.arms import ARMS, NAP, Sizes
from experiments.image_classification.corruptions import CORRUPTIONS, corrupted
from experiments.image_classification.run import planned_jobs
from experiments.image_classification.sets import load, shrunk, split_names
from experiments.image_classification.summary import Job

ARM = "bn+nap"
TINY: dict[str, Any] = {"dataset": "digits", "shrink": 1, "stages": 1, "width": 4, "groups": 2, "vit_width": 8}
TINY |= {"images": 64, "images_seen": 96, "reference_batch": 8, "batch_sizes": (8,), "seeds": 2}


@pytest.fixture(scope="module")
def learned(data_dir):
    """The sets, the trainer of the tiny setting, compiled once, and the states before, between and after chunks."""
    config = Config(**TINY, data_dir=data_dir)
    sets = load(config)
    trainer, grid = training.make_trainer(ARMS[ARM], config, sets, 8), training.all_runs(config, 64)
    states, rate = [trainer.init(grid, jnp.float32(0.1))], jnp.float32(0.1)
    for chunk in range(2):
        states.append(trainer.learn(states[-1], grid, rate, jnp.int32(chunk))[0])
    return sets, trainer, states


def _run(learned, config):
    with pytest.MonkeyPatch.context() as patch:
        # The trainer is that of the same arguments.
        patch.setattr(training, "make_trainer", lambda *arguments: learned[1])
        return run(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, learned):
    out = tmp_path_factory.mktemp("results")
    return _run(learned, Config(arms=(ARM,), sgd_rate=0.1, adam_rate=0.1, out=out, run="a", data_dir=data_dir, **TINY))


def test_outputs_of_a_run(finished):
    stored = json.loads((finished / "config.json").read_text())
    config = runs.from_json(Config, stored["config"])
    assert config.setting() == Config(**TINY).setting()
    assert stored["splits"] == ["train[:80%]", "train[80%:90%]", "train[90%:]"]
    first, last = records.read_lines(finished / "metrics.jsonl")
    assert [first["chunk"], last["chunk"], first["batch_size"], first["learning_rate"]] == [0, 1, 8, 0.1]
    assert "growth" not in first
    assert set(last["corrupted"]) == set(last["estimated"]) == set(corrupted(np.zeros((1, 2, 2, 1), np.float32)))
    assert last["corrupted"]["clean"] == last["test"]
    # Held weights have their first norms up to rounding, once per step.
    np.testing.assert_allclose(last["growth"], 1, atol=12 * np.finfo(np.float32).eps)
    written = json.loads((finished / "summary.json").read_text())
    np.testing.assert_allclose(written["rows"][0]["test"]["mean"], np.mean(last["test"]))
    noisy = [last["corrupted"][f"noise {strength:g}"] for strength in CORRUPTIONS["noise"][1]]
    np.testing.assert_allclose(written["corrupted"][ARM]["as trained"]["noise"]["mean"], np.mean(noisy))
    assert "BN + NaP, statistics estimated anew" in (finished / "summary.md").read_text()
    assert (finished / "figure.png").is_file()


def test_resumed_after_a_kill_gives_the_same_numbers(finished, learned, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut, ignore=shutil.ignore_patterns("checkpoints", "summary*", "figure*"))
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    # As if killed while the second chunk was being recorded.
    (cut / "metrics.jsonl").write_text(lines[0] + lines[1][:20])
    with Checkpoints(cut / "checkpoints") as checkpoints:
        checkpoints.save(0, 1, jax.tree.leaves(learned[2][1]))
    _run(learned, Config(resume=cut))
    assert (cut / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    assert (cut / "summary.json").read_text() == (finished / "summary.json").read_text()


def test_a_sweep_is_what_runs_choose_from(finished, learned, tmp_path, data_dir):
    path = tmp_path / "sweep.json"
    options = {"sweep_file": path, "out": tmp_path, "data_dir": data_dir, "arms": (ARM,)} | TINY
    _run(learned, Config(sweep=True, sgd_rates=(0.1, 1e-6), run="s", **options))
    content = json.loads(path.read_text())
    assert [(r["arm"], r["learning_rate"]) for r in content["results"]] == [(ARM, 1e-6), (ARM, 0.1)]
    assert content["setting"]["first_seed"] == sweep.SEED_OFFSET
    assert not (tmp_path / "s" / "figure.png").exists()
    best = max(content["results"], key=lambda r: r["validation"]["mean"])["learning_rate"]
    assert planned_jobs(Config(**options)) == [Job(ARM, 8, best)]
    with pytest.raises(UsageError, match="sweep has no arm 'gn'"):
        planned_jobs(Config(**options | {"arms": ("gn",)}))
    with pytest.raises(UsageError, match="No learning-rate sweep"):
        planned_jobs(Config(**options | {"sweep_file": tmp_path / "none.json"}))
    with pytest.raises(UsageError, match="is not a sweep file"):
        planned_jobs(Config(**options | {"sweep_file": finished / "config.json"}))


def test_accuracy_counts_every_image_once(learned):
    sets, trainer, states = learned
    part = Images(sets.test.images[:13], sets.test.labels[:13])
    images, labels = training.batched(part, sets)
    filled = jnp.concatenate([labels, jnp.full((1, 3), training.NO_LABEL)], axis=1)
    padded = jnp.pad(images, ((0, 0), (0, 3), (0, 0), (0, 0), (0, 0)))
    np.testing.assert_array_equal(
        trainer.accuracy(states[2], images, labels), trainer.accuracy(states[2], padded, filled)
    )


def test_last_batch_is_filled_up(learned, monkeypatch):
    monkeypatch.setattr(training, "EVALUATED", 8)
    images, labels = training.batched(learned[0].test, learned[0])
    count = len(learned[0].test.labels)
    assert images.shape == (-(-count // 8), 8, 8, 8, 1)
    np.testing.assert_array_equal(labels.reshape(-1)[:count], learned[0].test.labels)
    assert (labels.reshape(-1)[count:] == training.NO_LABEL).all()


def test_statistics_estimated_anew(learned):
    """The first norm sees other inputs, and afterwards has their statistics; parameters stay."""
    sets, trainer, states = learned
    images = training.standardized(sets.test.images[:24], sets)
    anew = training.estimated_anew(trainer, states[2], images, 12)
    jax.tree.map(np.testing.assert_array_equal, anew.params, states[2].params)
    for seed in range(2):
        kernel = np.asarray(states[2].params["stem"]["kernel"][...][seed], np.float64)
        padded = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
        stem = np.einsum("nhwcij,ijco->nhwo", windows, kernel)
        found = anew.statistics["stem_norm"]
        # Sums of nine products, then means of 12 * 16 places, in float32.
        np.testing.assert_allclose(found["mean"][...][seed], stem.mean(axis=(0, 1, 2)), atol=1e-5)


def test_order_is_the_same_at_every_batch_size():
    config = Config(**TINY | {"images_seen": 96})
    order = training.all_runs(config, 64).order
    assert order.shape == (2, 96)
    assert all(sorted(row[:64]) == list(range(64)) and len(set(row[64:])) == 32 for row in order.tolist())
    assert (order[0] != order[1]).any()
    np.testing.assert_array_equal(order[1], training.all_runs(Config(**TINY | {"first_seed": 1}), 64).order[0])


def test_rates_and_jobs(monkeypatch):
    config = Config(arms=("gn", "vit_ln", "gn+nap"), sgd_rate=0.64, adam_rate=0.08, batch_sizes=(1, 64))
    assert planned_jobs(config) == [
        Job("gn", 64, 0.64),
        Job("gn", 1, 0.01),
        Job("vit_ln", 64, 0.08),
        Job("vit_ln", 1, 0.01),
        Job("gn+nap", 64, 0.64),
    ]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_classifies(name):
    config = Config(**TINY, vit_layers=1)
    sizes = Sizes((8, 8, 3), 5, config)

    def logits():
        model: Any = ARMS[name].network(sizes, 0.9, nnx.Rngs(0))
        model.train()
        return model(jnp.ones((2, 8, 8, 3))), nnx.state(model, nnx.Param)

    found, params = jax.eval_shape(logits)
    assert found.shape == (2, 5)
    if (held := ARMS[name].held) is None:
        return
    assert name.endswith(NAP)
    flat = jax.tree_util.tree_leaves_with_path(held(sizes)(nnx.to_pure_dict(params)))
    chosen = {jax.tree_util.keystr(path, simple=True, separator="/") for path, taken in flat if taken}
    block = "stack/blocks/0"
    expected = {
        "bn+nap": {"stem/kernel", "stages/0/0/conv1/kernel", "stages/0/0/conv2/kernel"},
        "vit_peri+nap": {f"{block}/attention/branch/{which}/kernel" for which in ("query", "key", "value", "out")}
        | {f"{block}/ffn/branch/down/kernel"},
    }
    assert chosen == expected.get(name, expected["bn+nap"])


def test_corruptions():
    images = np.random.default_rng(0).uniform(0.4, 0.5, (50, 8, 8, 3)).astype(np.float32)
    found = corrupted(images)
    assert len(found) == 1 + 2 * len(CORRUPTIONS)
    assert all(
        v.dtype == np.float32 and v.shape == images.shape and v.min() >= 0 and v.max() <= 1 for v in found.values()
    )
    assert found["clean"] is images
    # 9600 draws: the deviation of a deviation is 0.1 / sqrt(2 * 9600), five of them.
    np.testing.assert_allclose((found["noise 0.1"] - images).std(), 0.1, atol=0.004)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found["contrast 0.75"] - mean, (images - mean) / 4, atol=1e-6)
    np.testing.assert_allclose(found["brightness 0.4"] - images, 0.4, atol=1e-6)
    np.testing.assert_allclose(found["cast 0.5"] / images, np.broadcast_to([1.5, 1, 0.5], images.shape), rtol=1e-6)
    dot = np.zeros((1, 9, 9, 1), np.float32)
    dot[0, 4, 4] = 1
    blurred = corrupted(dot)["blur 0.7"][0, :, :, 0]
    np.testing.assert_allclose(blurred[4, 5] / blurred[4, 4], np.exp(-0.5 / 0.7**2), rtol=1e-5)
    np.testing.assert_allclose(blurred.sum(), 1, rtol=1e-5)


def test_sets():
    assert split_names(["train", "validation", "test"]) == ("train", "validation", "test")
    assert split_names(["train", "validation"]) == ("train[:90%]", "train[90%:]", "validation")
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(shrunk(pixels, 2)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    with pytest.raises(UsageError, match=r"digits has images of 8x8; .* --patch may be 1, 2, 4"):
        load(Config(dataset="digits", patch=8))
    with pytest.raises(UsageError, match=r"digits has images of 8x8; .* multiple of --shrink 3"):
        load(Config(dataset="digits", shrink=3))


def test_summary_and_figure_of_known_numbers(tmp_path, monkeypatch):
    config = Config(arms=("bn", "gn", "bn+nap"), seeds=2, batch_sizes=(1, 64))

    def record(arm, batch, accuracies, **more):
        end = {"growth": [2.0, 4.0], "corrupted": {}, "estimated": {}}
        metrics = {"loss": [1.0, None if arm == "gn" else 2.0], "validation": [0.0, 0.0], "test": accuracies}
        return {"arm": arm, "batch_size": batch, "learning_rate": 0.1, "chunk": 1} | metrics | end | more

    clean = {"clean": [0.9, 0.7], "noise 0.1": [0.4, 0.2], "noise 0.2": [0.2, 0.0]}
    lines = [
        record("bn", 64, [0.9, 0.7], corrupted=clean),
        record("bn", 1, [0.5, 0.5]),
        record("gn", 1, [0.8, 0.7]),
        record("bn+nap", 64, [0.8, 0.8], growth=[1.0, 1.0]),
    ]
    found = summary.collect(lines)
    rows = {(row.job.arm, row.job.batch_size): row for row in summary.summarize(found, config)}
    assert rows["bn", 64].versus_bn is None
    assert rows["gn", 1].versus_reference is None
    np.testing.assert_allclose(rows["gn", 1].versus_bn.mean, 0.25)
    np.testing.assert_allclose(rows["bn", 1].versus_reference.mean, -0.3)
    assert (rows["gn", 1].diverged, rows["bn", 1].diverged) == (1, 0)
    (pair,) = summary.pairs(found, config)
    measured = [pair.difference.mean, pair.growth.mean, pair.growth_with_nap.mean]
    np.testing.assert_allclose(measured, [0, 3, 1], atol=1e-15)
    ways = summary.under_corruptions(found[Job("bn", 64, 0.1)])
    assert list(ways) == ["as trained"]
    np.testing.assert_allclose(ways["as trained"]["noise"], [0.3, 0.1])
    everywhere = dict.fromkeys(("clean", *CORRUPTIONS), np.array([0.5, 0.6]))
    found[Job("bn", 64, 0.1)] = found[Job("bn", 64, 0.1)]._replace(corrupted=everywhere, estimated=everywhere)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    figure.draw(tmp_path / "figure.png", config, found)
    by_title = {panel.get_title(): panel for panel in drawn[0].axes if panel.get_visible()}
    assert [title.split("\n")[0] for title in by_title] == [
        "residual networks as batches shrink",
        "test accuracy in % on corrupted images",
        "with NaP minus without",
    ]
    residual, corruptions, nap = by_title.values()
    # Gaps in `gn`'s batch sizes leave only `bn` to draw.
    assert [text.get_text() for text in residual.texts] == ["BN"]
    assert [text.get_text() for text in corruptions.texts] == ["55"] * 12
    assert [label.get_text() for label in nap.get_yticklabels()] == ["BN\n(norms grow 3.00-fold without)"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"arms": ("vit",)}, "--arms takes different ones of bn"),
        ({"batch_sizes": (5,)}, "must be a multiple of --chunks 2 times each batch size, got the batch size 5"),
        ({"batch_sizes": ()}, "--batch-sizes must be one or more different positive numbers"),
        ({"sgd_rate": -1.0}, "--sgd-rate must be positive and finite"),
        ({"groups": 3}, "--groups must be a divisor of --width 8, got 3"),
        ({"devices": 2}, "--seeds must be a multiple of --devices 2"),
        ({"sweep": True, "adam_rate": 0.1}, "drop --sgd-rate and --adam-rate"),
        ({"preset": "gpu", "images_seen": 1000}, "--images-seen 1000 must be a multiple of --chunks 20"),
        ({"run": "a/b"}, "--run is the name of a folder"),
    ],
)
def test_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        Config(**flags)


def test_presets():
    config = Config(preset="gpu", width=32, quick=True).resolved()
    assert (config.width, config.stages, config.seeds, config.images_seen) == (32, 4, 2, 2048)
    assert config.resolved() == config


def test_resume_refuses(finished, learned, tmp_path, capsys):
    with pytest.raises(UsageError, match="holds no run to resume"):
        run(Config(resume=tmp_path))
    with pytest.raises(UsageError, match=r"differ from --width 16"):
        run(Config(resume=finished, width=16))
    with pytest.raises(UsageError, match="holds a run already"):
        _run(learned, Config(arms=(ARM,), sgd_rate=0.1, adam_rate=0.1, out=finished.parent, run="a", **TINY))
    flags = ["--devices", "99", "--seeds", "99", "--sgd-rate", "1", "--adam-rate", "1", "--out", str(tmp_path)]
    assert main(["image_classification", *flags]) == 2
    assert "--devices 99, but there are" in capsys.readouterr().err
