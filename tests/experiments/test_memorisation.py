"""The grid of interventions: the networks, what happens between tasks, what the table says, and the command."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.data import preflight
from experiments.memorisation import Config, networks, summary
from experiments.memorisation.arms import ARMS, INTERVENTIONS, with_nap
from experiments.memorisation.config import PRESETS
from experiments.memorisation.networks import Shape
from experiments.memorisation.run import EXPERIMENT
from experiments.plasticity import model, sweep
from experiments.plasticity.training import METRICS, network_trainer, run_task
from experiments.statistics import t_interval

F32 = float(np.finfo(np.float32).eps)
SEEDS = jnp.arange(2, dtype=jnp.int32)
RATE = jnp.float32(1e-2)
CNN, MLP = Shape((3,), (6,)), Shape((), (6, 5))
STREAM = PRESETS["cpu"].streams["mlp"]._replace(steps=3, images=12, batch_size=4)
STRENGTHS = Config(shrink=0.75).resolved().strengths
TINY = ["--tasks", "6", "--steps", "2", "--images", "16", "--batch-size", "8", "--seeds", "2", "--mlp-widths", "4"]
TINY += ["--cnn-channels", "2", "--cnn-widths", "4"]


@functools.cache
def _images():
    return np.random.default_rng(0).integers(0, 17, (12, 5, 4, 1)).astype(np.uint8)


@functools.cache
def _trainer(name, shape):
    built = networks.build(shape, (5, 4, 1), ARMS[name])
    return network_trainer(built, ARMS[name].method, STRENGTHS, networks.inputs(shape, _images()), probe=10)


def _host(tree):
    return jax.tree.map(np.array, tree)


def _norms(params, layer):
    return np.linalg.norm(np.asarray(params[layer]["kernel"], np.float64).reshape(2, -1), axis=1)


@pytest.mark.parametrize("size", [(5, 4), (8, 7)])
def test_patches_times_kernel_is_the_strided_convolution(rng, size):
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 4))
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, rows, columns, 4))
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, i, j] = np.einsum("nhwc,hwcd->nd", seen, kernel)
    params = {"hidden_0": {"kernel": jnp.float32(kernel), "bias": jnp.zeros(4)}}
    shapes = networks.kernels(Shape((4,), (2,)), (*size, 3))
    params["hidden_1"] = {"kernel": jnp.zeros(shapes[1]), "bias": jnp.zeros(2)}
    params["readout"] = {"kernel": jnp.zeros(shapes[2]), "bias": jnp.zeros(10)}
    got = jax.jit(lambda params: model.apply(params, None, jnp.float32(x), jnp.asarray).activations[0])(params)
    # 27 products of numbers of order one in float32.
    np.testing.assert_allclose(got, expected, atol=27 * 10 * F32)


def test_shapes_of_the_kernels_follow_each_other():
    assert networks.kernels(MLP, (5, 4, 1)) == ((20, 6), (6, 5), (5, 10))
    assert networks.kernels(Shape((3, 4), (6,)), (5, 4, 1)) == ((3, 3, 1, 3), (3, 3, 3, 4), (2 * 1 * 4, 6), (6, 10))


def test_the_norm_of_images_is_one_per_image_and_scales_kernels_jointly():
    network, x = networks.build(CNN, (5, 4, 1), ARMS["ln"]), networks.inputs(CNN, _images())
    params = jax.jit(network.init)(jax.random.key(0))
    assert params["norm_0"]["scale"].shape == (3,)
    assert "bias" not in params["hidden_0"]
    scaled = params | {"hidden_0": {"kernel": 7.0 * params["hidden_0"]["kernel"]}}
    logits = jax.jit(lambda params: network.apply(params, x).logits)
    # What is left is the epsilon, 1e-6 of a variance of order one.
    np.testing.assert_allclose(logits(scaled), logits(params), rtol=0, atol=1e-4)


def test_the_grid_is_every_intervention_without_and_with_nap():
    assert set(ARMS) == set(INTERVENTIONS) | {with_nap(name) for name in INTERVENTIONS}
    assert with_nap("ln") == "none_nap"
    for name, arm in ARMS.items():
        assert arm.nap == name.endswith("_nap")
        assert arm.method.normalized == (arm.nap or name == "ln")
    assert len({arm.method.label for arm in ARMS.values()}) == len(ARMS)


def test_nap_keeps_norms_and_the_effective_rate_through_resets():
    trainer = _trainer("redo_nap", CNN)
    state = trainer.init(SEEDS, RATE, jnp.int32(0))
    initial = _host(state.params)
    for task in range(2):
        state, measured = run_task(ARMS["redo_nap"].method, trainer, STREAM, state, SEEDS, RATE, jnp.int32(task))
        assert set(measured) == set(METRICS)
        np.testing.assert_allclose(measured["hidden_effective_lr"], RATE, rtol=1e-6)
    assert trainer.train._cache_size() == 1
    assert trainer.renew is not None
    _same_norms(_host(trainer.renew(state, SEEDS, jnp.int32(2)).params), initial)


def test_nap_keeps_norms_where_weights_are_shrunk_and_perturbed():
    trainer = _trainer("shrink_nap", CNN)
    state = trainer.init(SEEDS, RATE, jnp.int32(0))
    assert trainer.renew is not None
    after = _host(trainer.renew(state, SEEDS, jnp.int32(1)).params)
    _same_norms(after, _host(state.params))
    assert (after["hidden_0"]["kernel"] != state.params["hidden_0"]["kernel"]).all()
    assert (_norms(after, "readout") < 0.95 * _norms(state.params, "readout")).all()


def _same_norms(got, wanted):
    for layer in ("hidden_0", "hidden_1"):
        # Products and a root of float32 sums.
        np.testing.assert_allclose(_norms(got, layer), _norms(wanted, layer), rtol=1e-6)


def test_shrink_and_perturb_is_the_weighted_mean_with_a_new_network():
    trainer = _trainer("shrink", MLP)
    state = trainer.init(SEEDS, RATE, jnp.int32(0))
    before = _host(state.params)
    before["hidden_0"]["bias"][...] = 2.0
    assert trainer.renew is not None
    after = _host(trainer.renew(state._replace(params=jax.tree.map(jnp.asarray, before)), SEEDS, jnp.int32(1)).params)
    np.testing.assert_array_equal(after["hidden_0"]["bias"], 1.5)
    drawn = (after["hidden_0"]["kernel"] - 0.75 * before["hidden_0"]["kernel"]) / 0.25
    # 120 draws a seed of He's deviation: four standard errors of a standard deviation.
    assert drawn.std(axis=(1, 2)) == pytest.approx((2 / 20) ** 0.5, rel=4 / (2 * 120) ** 0.5)
    assert not np.array_equal(drawn[0], drawn[1])


def test_redo_resets_dead_units_of_each_seed_and_their_moments():
    trainer = _trainer("redo", MLP)
    state = trainer.init(SEEDS, RATE, jnp.int32(0))
    (adam, *rest), *after = state.opt_state
    opt_state = ((adam._replace(mu=jax.tree.map(jnp.ones_like, state.params)), *rest), *after)
    # Unit 2 of the first seed and unit 4 of the second never fire; with all others far above zero none else is dormant.
    bias = jnp.full((2, 6), 9.0).at[0, 2].set(-99.0).at[1, 4].set(-99.0)
    params = state.params | {"hidden_0": state.params["hidden_0"] | {"bias": bias}}
    params["hidden_1"] = params["hidden_1"] | {"bias": jnp.full((2, 5), 99.0)}
    before = _host(params)
    assert trainer.renew is not None
    renewed = _host(trainer.renew(state._replace(params=params, opt_state=opt_state), SEEDS, jnp.int32(1)))
    dead = np.zeros((2, 6), bool)
    dead[0, 2] = dead[1, 4] = True
    np.testing.assert_array_equal(renewed.params["hidden_0"]["bias"], np.where(dead, 0, before["hidden_0"]["bias"]))
    changed = (renewed.params["hidden_0"]["kernel"] != before["hidden_0"]["kernel"]).any(axis=1)
    np.testing.assert_array_equal(changed, dead)
    np.testing.assert_array_equal((renewed.params["hidden_1"]["kernel"] == 0).all(axis=2), dead)
    mu = renewed.opt_state[0][0].mu["hidden_1"]["kernel"]
    np.testing.assert_array_equal(mu, np.where(dead[..., None], 0, np.ones((2, 6, 5))))


def _series(tasks=12, seeds=3):
    generator = np.random.default_rng(1)
    return {
        (f"mlp/{arm}", rate): {name: generator.random((tasks, seeds)) for name in METRICS}
        for arm in ("none", "none_nap", "l2", "l2_nap", "ln", "leaky")
        for rate in (0.1, 0.2)
    }


def test_gap_and_spread_are_paired_by_seed_at_each_arms_best_rate():
    series = _series()
    best = {}
    for (arm, _), values in series.items():
        if arm not in best or values["online_accuracy"].mean() > best[arm]["online_accuracy"].mean():
            best[arm] = values
    last = {arm: values["online_accuracy"][-2:].mean(axis=0) for arm, values in best.items()}
    found = {pair.intervention: pair for pair in summary.pairs(series, "mlp")}
    assert list(found) == ["none", "l2", "leaky", "ln"]
    assert found["leaky"].nap is None
    assert found["leaky"].gap is None
    # For the norm alone, NaP is NaP alone.
    assert found["ln"].nap == found["none"].nap
    for name, nap in (("l2", "l2_nap"), ("ln", "none_nap")):
        assert found[name].gap == pytest.approx(t_interval(last[f"mlp/{nap}"] - last[f"mlp/{name}"]))
    both = summary.spread(series, "mlp")
    assert both is not None
    assert both.interventions == ("none", "l2")
    distance = np.abs(last["mlp/none"] - last["mlp/l2"])
    assert both.without == pytest.approx(t_interval(distance))
    # Of two numbers, the standard deviation is their distance over the root of two.
    assert both.deviation_without == pytest.approx(t_interval(distance / 2**0.5))
    assert summary.spread(series, "cnn") is None
    assert summary.pairs(series, "cnn") == []


def test_a_row_has_the_first_and_last_sixth_of_the_tasks():
    (job, values), *_ = _series().items()
    row = summary.summarize({job: values})[0]
    final = values["final_accuracy"]
    assert (row.arm, row.learning_rate) == job
    assert row.final_first == pytest.approx(t_interval(final[:2].mean(axis=0)))
    assert row.final_last == pytest.approx(t_interval(final[-2:].mean(axis=0)))
    assert row.change.mean == pytest.approx(row.online_last.mean - row.online_first.mean)
    assert row.last["dead_units"] == pytest.approx(values["dead_units"][-2:].mean())


def _main(*arguments):
    return main(["memorisation", *TINY, *map(str, arguments)])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two arms of both networks."""
    out = tmp_path_factory.mktemp("results")
    flags = ("--arms", "none", "none_nap", "--learning-rates", 0.1, 0.01, "--sweep-file", out / "sweep.json")
    assert _main(*flags, "--out", out, "--run", "sweep", "--sweep") == 0
    return out


def test_outputs_of_a_sweep(swept):
    content = sweep.read(swept / "sweep.json", "digits", EXPERIMENT)
    names = [f"{network}/{arm}" for network in ("mlp", "cnn") for arm in ("none", "none_nap")]
    jobs = [(name, rate) for name in names for rate in (0.01, 0.1)]
    assert [(r["arm"], r["learning_rate"]) for r in content["results"]] == jobs
    assert content["setting"]["first_seed"] == sweep.SEED_OFFSET
    assert content["setting"]["streams"]["cnn"]["shape"] == {"channels": [2], "widths": [4]}
    lines = records.read_lines(swept / "sweep" / "metrics.jsonl")
    assert [(r["arm"], r["learning_rate"], r["task"]) for r in lines] == [(*job, t) for job in jobs for t in range(6)]
    assert all(len(r[name]) == 2 for r in lines for name in METRICS)
    stored = json.loads((swept / "sweep" / "config.json").read_text())
    assert runs.from_json(Config, stored["config"]).mlp_widths == (4,)
    table = (swept / "sweep" / "summary.md").read_text()
    assert "CNN 2 conv, 4: random labels of 16 digits images" in table
    assert "| MLP NaP |" in table
    # With two rates each is an edge.
    assert "best rate at the edge of the grid: MLP none, MLP NaP, CNN none, CNN NaP" in table
    found = json.loads((swept / "sweep" / "summary.json").read_text())["networks"]["mlp"]
    assert [row["intervention"] for row in found["rows"]] == ["none"]
    assert (swept / "sweep" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_resuming_a_finished_run_changes_nothing(swept):
    folder = swept / "sweep"
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["memorisation", "--resume", str(folder)]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_run_takes_each_arms_best_rate_of_the_sweep(swept, capsys):
    flags = ("--out", swept, "--run", "more", "--sweep-file", swept / "sweep.json")
    assert _main(*flags, "--arms", "none", "leaky") == 2
    assert "no arm 'mlp/leaky'" in capsys.readouterr().err
    content = json.loads((swept / "sweep.json").read_text())
    rates = sweep.best_rates(content, ["cnn/none_nap"])
    assert _main(*flags, "--networks", "cnn", "--arms", "none_nap") == 0
    stored = json.loads((swept / "more" / "config.json").read_text())
    assert {job["arm"]: job["learning_rate"] for job in stored["jobs"]} == rates


def test_the_committed_sweep_covers_the_grid_of_the_cpu_preset():
    content = sweep.read(sweep.default_file("digits", EXPERIMENT), "digits", EXPERIMENT)
    swept = {(r["arm"], r["learning_rate"]) for r in content["results"]}
    names = {f"{network}/{arm}" for network in ("mlp", "cnn") for arm in ARMS}
    assert swept == {(name, rate) for name in names for rate in Config().learning_rates}
    assert content["setting"] == records.plain(Config(first_seed=sweep.SEED_OFFSET).setting())


def test_a_dataset_that_cannot_be_downloaded_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "answers", lambda url: False)
    flags = ("--preset", "paper", "--learning-rate", 1e-4, "--data-dir", tmp_path / "data", "--out", tmp_path / "out")
    assert _main(*flags) == 2
    assert "Dataset 'cifar10' is not prepared" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole(preset):
    settings = Config(preset=preset).resolved()
    assert set(settings.streams) == {"mlp", "cnn"}
    assert not settings.streams["mlp"].shape.channels
    assert settings.streams["cnn"].shape.channels
    assert settings.seeds >= 5
    quick = Config(preset=preset, quick=True).resolved()
    assert quick.seeds < settings.seeds
    assert all(quick.streams[name].tasks < stream.tasks for name, stream in settings.streams.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("none", "foo")}, r"different ones of none, none_nap, .*; got none foo"),
        ({"networks": ()}, "--networks takes different ones of mlp, cnn; got none"),
        ({"tasks": 0}, "--tasks must be at least 1, got 0"),
        ({"cnn_widths": ()}, r"--cnn-widths must be one or more sizes of at least 1, got \(\)"),
        ({"cnn_channels": (8, 0)}, "--cnn-channels must be one or more sizes of at least 1"),
        ({"batch_size": 300}, r"--batch-size 300 is larger than --images 256 \(cnn\)"),
        ({"learning_rates": (0.1, 0.1)}, "one or more different rates"),
        ({"shrink": 1.5}, "--shrink must be between 0 and 1, got 1.5"),
        ({"update_noise": -1.0}, "--update-noise must be finite and at least 0"),
        ({"sweep": True, "learning_rate": 0.1}, "drop --learning-rate 0.1"),
        ({"sweep": True, "networks": ("mlp",), "steps": 3}, "with other networks, steps than the default"),
        ({"run": "../elsewhere"}, "name of a folder in --out"),
    ],
)
def test_bad_configuration_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Config(), **change)
