"""Reinforcement learning: returns, what a phase does to the weights, and the command, on a game of one step's depth."""

import dataclasses
import functools
import importlib.util
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import UsageError, records, runs, statistics
from experiments.__main__ import main
from experiments.minatar import Config, games, sweep, training
from experiments.minatar import summary as summaries
from experiments.minatar.algorithms import PPO, PQN, Batch, lambda_returns
from experiments.minatar.arms import ARMS, DECAY
from experiments.minatar.config import PRESETS
from experiments.minatar.figure import STYLES

SEEDS = jnp.arange(2, dtype=jnp.int32)
RATE = 3e-3
HAS_GYMNAX = importlib.util.find_spec("gymnax") is not None


def _guess():
    """A game of four steps; its pixel says which of two actions is rewarded."""

    def see(target):
        return jax.nn.one_hot(10 * target, games.PIXELS, dtype=jnp.float32)[:, None]

    def reset(key):
        target = jax.random.randint(key, (), 0, 2)
        return see(target), (target, jnp.int32(0))

    def step(key, state, action):
        target, time = state
        drawn, end = jax.random.randint(key, (), 0, 2), time == 3
        reward = (action == target).astype(jnp.float32)
        return see(drawn), (drawn, jnp.where(end, 0, time + 1)), reward, end

    return games.Game("guess", 1, 2, reset, step)


def _settings(**changes):
    sizes = {"phases": 2, "steps": 5_120, "envs": 16, "width": 16, "depth": 2, "seeds": 2} | changes
    return Config(weight_decay=20.0, affine_decay=0.5, **sizes).resolved()


@functools.cache
def _run(name, algorithm=PQN):
    """Two phases of an arm, compiled once for all tests; copies, since a phase consumes the agent."""
    game, settings = _guess(), _settings(steps=10 * 16 * algorithm.horizon)
    trainer = training.make_trainer(ARMS[name], algorithm, game, settings)
    agent = trainer.init(SEEDS, jnp.int32(0))
    initial, measured = jax.tree.map(np.array, agent.params), []
    for phase in range(2):
        task = training.draw_task(SEEDS, jnp.int32(phase), game.channels, game.actions, True)
        agent, metrics = trainer.train(agent, SEEDS, jnp.int32(phase), jnp.float32(RATE), task)
        measured.append(jax.tree.map(np.asarray, metrics))
    assert trainer.train._cache_size() == 1
    return initial, jax.tree.map(np.array, agent.params), measured


def _norms(params, layer, name="kernel"):
    return np.linalg.norm(np.asarray(params[layer][name], np.float64).reshape(2, -1), axis=1)


def test_returns_are_the_recursion_and_end_with_the_episode(rng):
    rewards, values = rng.normal(size=(2, 6, 3))
    ends = rng.random((6, 3)) < 0.3
    expected, following = np.zeros((6, 3)), values[-1]
    for t in reversed(range(6)):
        following = rewards[t] + 0.9 * (1 - ends[t]) * (0.7 * following + 0.3 * values[t])
        expected[t] = following
    got = lambda_returns(jnp.float32(rewards), jnp.asarray(ends), jnp.float32(values), 0.9, 0.7)
    # Six additions of numbers of order one in float32.
    np.testing.assert_allclose(got, expected, atol=6 * 3 * np.finfo(np.float32).eps)


def test_losses_at_a_point_worked_out_by_hand():
    outputs = jnp.array([[1.0, 3.0], [0.0, -2.0]])
    batch = Batch(jnp.zeros((2, 1)), jnp.array([1, 0]), outputs, jnp.array([1.0, 2.0]))
    assert float(PQN.loss(outputs, batch)) == pytest.approx(0.5 * (2.0**2 + 2.0**2) / 2)
    # One logit: the policy is certain, ratio 1 and entropy 0; what is left is the normalised advantage, of mean zero.
    assert float(PPO.loss(outputs, batch._replace(actions=jnp.zeros(2, jnp.int32)))) == pytest.approx(
        0.5 * 0.5 * ((3 - 1) ** 2 + (-2 - 2) ** 2) / 2, rel=1e-6
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        PQN,
        pytest.param(
            PPO,
            marks=pytest.mark.skipif(
                os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="a second compilation: nightly only"
            ),
        ),
    ],
    ids=lambda a: a.label,
)
def test_an_agent_learns_each_phase_anew(algorithm):
    _, _, measured = _run("nap_linear", algorithm)
    assert set(measured[0]) == set(training.METRICS)
    for metrics in measured:
        assert all(metrics[name].shape == (2, training.SEGMENTS) for name in training.CURVES)
        assert (metrics["episode_return"][:, -1] > metrics["episode_return"][:, 0]).all()
        # By chance 2 of 4; a quarter of the way from there to perfect play.
        assert (metrics["episode_return"][:, -1] > 2.5).all()


def test_nap_keeps_the_norms_of_the_first_phase_and_the_decayed_rate():
    initial, final, measured = _run("nap_linear")
    for layer in ("hidden_0", "hidden_1"):
        np.testing.assert_allclose(_norms(final, layer), _norms(initial, layer), rtol=1e-6)
    assert (np.abs(_norms(final, "readout") / _norms(initial, "readout") - 1) > 1e-3).all()
    for metrics in measured:
        np.testing.assert_allclose(metrics["hidden_norm_ratio"], 1, rtol=1e-6)
        rates = metrics["hidden_effective_lr"]
        assert (np.diff(rates) < 0).all()
        # The mean of a segment, of tenths of a straight line from the rate to a fraction of it.
        assert (rates[:, 0] > 0.9 * RATE).all()
        assert (rates[:, -1] < RATE * (1 / DECAY + 0.15)).all()


def test_a_new_optimizer_still_pulls_to_one_and_zero():
    initial, final, measured = _run("nap_linear")
    assert (initial["norm_0"]["scale"] == 1).all()
    # Half of the distance is removed per step, of at most the rate: never further than twice that.
    assert np.abs(final["norm_0"]["scale"] - 1).max() <= 2 * RATE
    assert np.abs(final["norm_1"]["bias"]).max() <= 2 * RATE
    np.testing.assert_allclose(measured[1]["affine_norm"], 1, atol=2 * RATE)


def test_tasks_are_permutations_shared_by_arms_and_different_by_seed_and_phase():
    first = training.draw_task(SEEDS, jnp.int32(0), 4, 3, True)
    again = training.draw_task(SEEDS, jnp.int32(1), 4, 3, True)
    for task in (first, again):
        for array, size in zip(task, (games.PIXELS, 4, 3), strict=True):
            np.testing.assert_array_equal(np.sort(array, axis=1), np.tile(np.arange(size), (2, 1)))
    assert not np.array_equal(first.pixels[0], first.pixels[1])
    assert not np.array_equal(first.pixels, again.pixels)
    plain = training.draw_task(SEEDS, jnp.int32(1), 4, 3, False)
    np.testing.assert_array_equal(plain.pixels[1], np.arange(games.PIXELS))


def test_interrupted_run_continues_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(games, "load", lambda names: [_guess()])
    monkeypatch.setattr(records, "environment", lambda packages: {"versions": {}})
    sizes = ["--phases", "3", "--steps", "5120", "--envs", "16", "--width", "8", "--depth", "1", "--seeds", "2"]
    flags = ["minatar", *sizes, "--arms", "nap", "--learning-rate", "0.003", "--out", str(tmp_path)]
    append = records.append_line

    def interrupt(path, record):
        if record["arm"] == "nap" and record["phase"] == 2:
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(records, "append_line", interrupt)
    assert main([*flags, "--run", "cut"]) == 130
    monkeypatch.setattr(records, "append_line", append)
    assert main(["minatar", "--resume", str(tmp_path / "cut")]) == 0
    assert main([*flags, "--run", "whole"]) == 0
    for name in ("metrics.jsonl", "summary.json", "summary.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert [row["arm"] for row in summary["rows"]] == ["nap"]
    assert (tmp_path / "whole" / "figure.png").stat().st_size > 20_000
    assert main([*flags, "--run", "whole"]) == 2
    assert main(["minatar", "--resume", str(tmp_path / "whole"), "--phases", "4"]) == 2


def test_without_gymnax_the_way_out_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(games.importlib.util, "find_spec", lambda name: None)
    assert main(["minatar", "--learning-rate", "0.001", "--out", str(tmp_path)]) == 2
    assert "[experiments,rl]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_GYMNAX, reason="gymnax is not installed (the rl extra)")
def test_games_share_one_size():
    with jax.numpy_rank_promotion("allow"):
        for game in games.load(tuple(games.GAMES)):
            observation, state = jax.eval_shape(game.reset, jax.random.key(0))
            after = jax.eval_shape(game.step, jax.random.key(0), state, jnp.int32(4))
            assert observation.shape == after[0].shape == (games.PIXELS, 7)
            assert (game.channels, game.actions) == (7, 5)
            assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
                lambda x: (x.shape, x.dtype), after[1]
            )


def test_interquartile_mean_and_its_bootstrap(rng):
    scores = rng.normal(size=(5, 8))
    middle = np.sort(scores.reshape(-1))[10:30].mean()
    estimate = statistics.stratified_bootstrap(scores)
    assert estimate.value == pytest.approx(middle)
    assert estimate.low < middle < estimate.high
    # Normal scores: the standard error of a mean of 40 is 0.16, that of the middle half somewhat more.
    assert 2 * 0.16 < estimate.high - estimate.low < 6 * 0.16
    assert statistics.stratified_bootstrap(np.tile(np.arange(8.0), (5, 1))) == (3.5, 3.5, 3.5)
    with pytest.raises(ValueError, match=r"scores \(runs, tasks\), got an array of shape \(5,\)"):
        statistics.stratified_bootstrap(np.zeros(5))


def _records(arm, returns):
    """Records of three phases, two seeds and constant curves."""
    other = {name: [0.0, 0.0] for name in training.METRICS} | {
        name: [[0.0] * training.SEGMENTS] * 2 for name in training.CURVES
    }
    return [
        {"arm": arm, "learning_rate": 0.1, "phase": phase, **other}
        | {"episode_return": [[None, *[value] * (training.SEGMENTS - 1)] for value in pair]}
        for phase, pair in enumerate(returns)
    ]


def test_summary_pairs_seeds_and_compares_with_the_fresh_network():
    lines = _records("nap", [(2, 4), (0, 0), (3, 7)]) + _records("fresh", [(2, 4), (2, 2), (1, 3)])
    settings = Config(phases=3).resolved()
    nap, fresh = summaries.summarize(summaries.collect(lines), settings)
    # The first tenth has no finished episode and counts as zero.
    assert nap.first.value == pytest.approx(0.9 * 3)
    assert nap.change.mean == pytest.approx(0.9 * (5 - 3))
    assert nap.versus_fresh.mean == pytest.approx(0.9 * (5 - 2))
    assert nap.end.value == pytest.approx(5)
    assert fresh.versus_fresh is None
    cycle = summaries.summarize(
        summaries.collect(lines), Config(phases=3, stream="cycle", games=("breakout",)).resolved()
    )
    assert cycle[0].last.value == pytest.approx(5 / 2)


def test_committed_sweeps_cover_every_arm_on_one_grid():
    path = sweep.default_file(Config().resolved())
    content = sweep.read(path)
    rates = {result["learning_rate"] for result in content["results"]}
    assert {(r["arm"], r["learning_rate"]) for r in content["results"]} == {(a, r) for a in ARMS for r in rates}
    assert set(sweep.best_rates(content, ARMS)) == set(ARMS)
    with pytest.raises(UsageError, match="no arm 'none'"):
        sweep.best_rates(content, ["none"])


@pytest.mark.parametrize("text", ["", "{}", '{"experiment": "plasticity", "results": []}'])
def test_broken_sweep_file(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a sweep file"):
        sweep.read(path)
    with pytest.raises(UsageError, match="--learning-rate"):
        sweep.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("ln", "foo")}, r"different ones of plain, ln, .*; got ln foo"),
        ({"games": ()}, "--games takes some of breakout, .*; got none"),
        ({"phases": 0}, "--phases must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "positive and finite, got nan"),
        ({"affine_decay": 2.0}, "between 0 and 1, got 2.0"),
        ({"sweep": True, "learning_rate": 0.1}, "drop --learning-rate 0.1"),
        ({"sweep": True, "quick": True}, "name a file of its own with --sweep-file"),
        ({"run": "../elsewhere"}, "name of a folder in --out"),
    ],
)
def test_bad_configuration_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Config(), **change)


def test_sizes_come_from_the_preset_and_are_rounded_to_whole_rounds():
    for name, preset in PRESETS.items():
        settings = Config(preset=name).resolved()
        assert {k: getattr(settings, k) for k in preset._asdict()} == preset._asdict()
    assert Config(steps=123_456).resolved().steps == 122_880
    assert Config(stream="cycle").resolved().phases == 8
    assert Config(quick=True, seeds=4).resolved()[-1] == 4
    with pytest.raises(UsageError, match="--steps must be at least 20480 with --envs 64 and PQN, got 100"):
        Config(steps=100).resolved()


def test_the_written_configuration_is_the_configuration(tmp_path):
    config = Config(arms=("ln",), sweep_file=tmp_path / "s.json", games=("asterix",), run="x")
    assert runs.from_json(Config, json.loads(json.dumps(records.plain(config)))) == config
    runs.check_resumable(Config(), config)
    with pytest.raises(UsageError, match="unknown fields speed"):
        runs.from_json(Config, {"speed": 1})


def test_every_arm_has_a_style():
    assert set(STYLES) == set(ARMS)
    assert len(set(map(str, STYLES.values()))) == len(ARMS)
