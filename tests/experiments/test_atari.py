"""Rainbow: replay against a plain list of steps, projected distributions, what the arms project, a smoke run."""

import dataclasses
import importlib.util
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normjax as nj
from experiments import UsageError, records, runs
from experiments.__main__ import main
from experiments.atari import Config, games
from experiments.atari.arms import ARMS, hidden_kernels, learning_rate, optimizer
from experiments.atari.config import PRESETS
from experiments.atari.network import Network
from experiments.atari.rainbow import ATOMS, Learner, make_agent, project, support
from experiments.atari.replay import Replay, Sample, SumTree

HAS_ALE = all(importlib.util.find_spec(name) is not None for name in ("ale_py", "gymnasium"))
LENGTH, ENVS, STACK, STEPS, DISCOUNT = 12, 2, 3, 2, 0.9


def test_sum_tree_is_a_cumulative_sum(rng):
    tree, plain = SumTree(11), np.zeros(11)
    for _ in range(30):
        indices = rng.integers(11, size=4)
        values = rng.random(4) * (rng.random(4) < 0.7)
        plain[indices] = values
        tree.set(indices, values)
    assert tree.total == pytest.approx(plain.sum())
    draws = rng.random(200) * tree.total
    np.testing.assert_array_equal(tree.find(draws), np.searchsorted(np.cumsum(plain), draws, side="right"))
    np.testing.assert_array_equal(tree.get(np.arange(11)), plain)
    # The end of the range, and beyond by rounding: still a leaf that holds something.
    assert (plain[tree.find(np.array([tree.total, np.nextafter(tree.total, 9)]))] > 0).all()


def _fill(replay, rng, count):
    """Steps of random episodes: (frame, action, reward, end, start) of each environment in turn."""
    steps, starts = [], np.ones(ENVS, bool)
    for number in range(count):
        frames = np.full((ENVS, 1, 1), number + 1, np.uint8) + np.arange(ENVS)[:, None, None].astype(np.uint8) * 100
        actions, rewards, ends = rng.integers(4, size=ENVS), rng.random(ENVS), rng.random(ENVS) < 0.2
        replay.add(frames, actions, rewards, ends, starts)
        steps.append((frames[:, 0, 0], actions, rewards, ends, starts))
        starts = ends
    return steps


@pytest.mark.parametrize("count", [7, 40])
def test_replay_gives_the_transitions_of_the_steps_it_kept(rng, count):
    replay = Replay(LENGTH, ENVS, (1, 1), stack=STACK, steps=STEPS, discount=DISCOUNT)
    steps = _fill(replay, rng, count)
    sample = replay.sample(400, 1.0, rng)
    oldest, seen = max(0, count - LENGTH), set()
    for i in range(400):
        env = int(sample.indices[i] % ENVS)
        (t,) = [t for t in range(oldest, count) if t % LENGTH == sample.indices[i] // ENVS]
        seen.add((t, env))
        expected, shown = [], True
        for k in range(STACK):
            expected.append(steps[t - k][0][env] if shown else 0)
            shown = shown and not steps[t - k][4][env]
        assert sample.observations[i, 0, 0].tolist() == expected[::-1]
        total, weight = 0.0, 1.0
        for k in range(STEPS):
            total += weight * steps[t + k][2][env]
            weight *= DISCOUNT * (not steps[t + k][3][env])
        assert sample.actions[i] == steps[t][1][env]
        assert sample.rewards[i] == pytest.approx(total, rel=1e-6)
        assert sample.discounts[i] == pytest.approx(weight, rel=1e-6)
        if weight:
            assert sample.next_observations[i, 0, 0, -1] == steps[t + STEPS][0][env]
    # Every step whose stack and successor are still kept is drawn, and no other.
    first = oldest + STACK - 1 if oldest else 0
    assert seen == {(t, env) for t in range(first, count - STEPS) for env in range(ENVS)}
    np.testing.assert_array_equal(sample.weights, 1)


def test_large_errors_are_drawn_more_often_and_weigh_less(rng):
    replay = Replay(LENGTH, ENVS, (1, 1), stack=STACK, steps=STEPS)
    _fill(replay, rng, 8)
    everything = np.unique(replay.sample(400, 1.0, rng).indices)
    errors = np.where(everything == everything[0], 9.0, 1.0)
    replay.update(everything, errors)
    sample = replay.sample(4000, 1.0, rng)
    often = sample.indices == everything[0]
    # Exponent one half: three times the others' share; a stratified draw has less than binomial noise.
    assert often.mean() == pytest.approx(3 / (3 + len(everything) - 1), abs=0.02)
    np.testing.assert_allclose(sample.weights[often], 1 / 3, rtol=1e-5)


def test_replay_refuses_what_it_cannot_do(rng):
    with pytest.raises(ValueError, match=r"more than stack \+ steps = 5, got 5"):
        Replay(5, 1, (1, 1), stack=3, steps=2)
    with pytest.raises(ValueError, match="only 0 steps are stored"):
        Replay(9, 1, (1, 1)).sample(1, 1.0, rng)


def test_projection_keeps_mass_and_mean_within_the_support(rng):
    atoms = np.linspace(-2, 2, 9)
    values, weights = rng.uniform(-2, 2, (3, 9)), rng.dirichlet(np.ones(9), 3)
    expected = np.zeros((3, 9))
    for row in range(3):
        for value, weight in zip(values[row], weights[row], strict=True):
            place = (value + 2) / 0.5
            low = min(int(place), 7)
            expected[row, low] += weight * (low + 1 - place)
            expected[row, low + 1] += weight * (place - low)
    got = project(jnp.float32(values), jnp.float32(weights), jnp.float32(atoms))
    # Places are up to 8 with float32's relative error, weights at most one.
    np.testing.assert_allclose(got, expected, atol=8 * 9 * np.finfo(np.float32).eps)
    outside = project(jnp.full((1, 2), 50.0), jnp.array([[0.5, 0.5]]), jnp.float32(atoms))
    np.testing.assert_allclose(outside[0, -1], 1)


class _Small(nn.Module):
    """Two actions from four pixels, in place of the convolutional network."""

    @nn.compact
    def __call__(self, observations):
        x = observations.reshape(len(observations), -1).astype(jnp.float32)[:, :4] / 255
        return nn.Dense(2 * ATOMS)(x).reshape(-1, 2, ATOMS) + 0 * jax.random.normal(self.make_rng("noise"))


def test_learning_moves_the_chosen_action_towards_the_target_networks_return():
    agent = make_agent(_Small(), optax.adam(0.1))
    params = agent.init(jax.random.key(0))
    seen = np.zeros((2, 84, 84, 4), np.uint8)
    seen[0, 0, 0, 0] = seen[1, 0, 0, 1] = 255
    # Episodes that end: what is to be learned is the reward itself.
    rewards = np.array([4.0, -3.0], np.float32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    sample = Sample(np.arange(2), seen, np.array([0, 1], np.int32), rewards, zeros, seen, ones)
    learner = Learner(params, params, optax.adam(0.1).init(params))
    for step in range(60):
        learner, errors = agent.learn(learner, jax.random.key(step), sample)
        first = errors if step == 0 else first  # noqa: F821
    assert (np.asarray(errors) < 0.05 * np.asarray(first)).all()
    logits = _Small().apply({"params": learner.params}, seen, rngs={"noise": jax.random.key(0)})
    values = jnp.sum(jax.nn.softmax(logits) * support()[None, None, :], axis=-1)
    np.testing.assert_allclose([values[0, 0], values[1, 1]], rewards, atol=0.3)
    np.testing.assert_array_equal(agent.act(learner.params, jax.random.key(0), seen), [0, 0])
    assert jax.tree.map(np.array_equal, learner.target, params) == jax.tree.map(lambda _: True, params)


def _shapes(normalized):
    network = Network(3, 5, normalized)
    streams = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    observation = jnp.zeros((1, 84, 84, 4), jnp.uint8)
    return jax.eval_shape(network.init, streams, observation)["params"]


def test_hidden_kernels_are_projected_and_readouts_and_noise_are_not():
    params = _shapes(True)
    chosen = {(a, b) for a, leaves in hidden_kernels(params).items() for b, wanted in leaves.items() if wanted}
    hidden = ("hidden_0", "hidden_1", "hidden_2", "hidden_value", "hidden_advantage")
    assert chosen == {(name, "kernel") for name in hidden}
    assert all("bias" not in params[name] for name in hidden)
    assert sum(name.startswith("norm_") for name in params) == len(hidden)
    assert not any(name.startswith("norm_") for name in _shapes(False))
    assert params["advantage_readout"]["kernel"].shape == (512, 15)
    state = jax.eval_shape(optimizer(ARMS["nap"], optax.constant_schedule(0.1), 0.1).init, params)
    assert set(nj.weight_motion(state)) == {f"{name}/kernel" for name in hidden}


def test_schedules_begin_and_end_where_the_paper_has_them():
    linear, cosine = learning_rate("linear", 6.25e-5, 10_000), learning_rate("cosine", 6.25e-5, 10_000)
    rates = [float(s(t)) for s, t in ((linear, 0), (linear, 5000), (cosine, 0), (cosine, 1000), (cosine, 10_000))]
    # The start is a difference of the peak's size in float32.
    np.testing.assert_allclose(rates, [6.25e-5, 1e-6, 1e-8, 6.25e-5, 1e-6], rtol=1e-3)
    assert float(learning_rate("constant", 0.1, 10)(7)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("foo",)}, "different ones of plain, .*; got foo"),
        ({"games": ()}, "one or more games; got none"),
        ({"visits": 0}, "--visits must be at least 1, got 0"),
        ({"frames": 100}, "--frames must be at least 160 with --envs 4, got 100"),
        ({"replay": 10}, "--replay must be at least 16 .* got 10 and 1000"),
        ({"learning_rate": -1.0}, "positive and finite, got -1.0"),
        ({"affine_decay": 2.0}, "between 0 and 1, got 2.0"),
        ({"run": "a/b"}, "name of a folder in --out"),
    ],
)
def test_bad_configuration_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Config(), **change)


def test_configuration_survives_json_and_takes_the_presets_sizes():
    config = Config(preset="paper", games=("pong",), seeds=2)
    assert runs.from_json(Config, json.loads(json.dumps(records.plain(config)))) == config
    assert config.sizes() == PRESETS["paper"]._replace(games=("pong",), seeds=2)
    with pytest.raises(UsageError, match="unknown fields speed"):
        runs.from_json(Config, {"speed": 1})


def test_without_ale_the_way_out_and_its_licence_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(games.importlib.util, "find_spec", lambda name: None)
    assert main(["atari", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "GPL-2.0" in error
    assert "[experiments,atari]" in error
    assert main(["atari", "--resume", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_ALE, reason="ale-py is not installed (the atari extra, GPL-2.0)")
def test_replay_stacks_frames_as_the_emulators_do(rng):
    env, replay = games.Games("breakout", 2, 0), Replay(400, 2, (84, 84), steps=1)
    observations, starts, seen = env.reset(), np.ones(2, bool), []
    for _ in range(300):
        actions = rng.integers(games.ACTIONS, size=2)
        after = env.step(actions)
        replay.add(observations[..., -1], actions, after.rewards, after.ends, starts)
        seen.append(observations)
        observations, starts = after.observations, after.ends
    env.close()
    assert any(starts) or replay.count == 300
    sample = replay.sample(64, 1.0, rng)
    for index, observation in zip(sample.indices, sample.observations, strict=True):
        np.testing.assert_array_equal(observation, seen[index // 2][index % 2])


@pytest.mark.skipif(not HAS_ALE, reason="ale-py is not installed (the atari extra, GPL-2.0)")
def test_smoke_run_and_its_resumption(tmp_path, monkeypatch):
    sizes = ["--games", "breakout", "pong", "--frames", "800", "--replay", "400", "--warm-up", "100"]
    append = records.append_line

    def interrupt(path, record):
        if record["phase"] == 1:
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(records, "append_line", interrupt)
    assert main(["atari", *sizes, "--arms", "nap_linear", "--out", str(tmp_path), "--run", "x"]) == 130
    monkeypatch.setattr(records, "append_line", append)
    assert main(["atari", "--resume", str(tmp_path / "x")]) == 0
    lines = records.read_lines(tmp_path / "x" / "metrics.jsonl")
    assert [(line["phase"], line["game"]) for line in lines] == [(0, "breakout"), (1, "pong")]
    assert all(line["hidden_norm_ratio"] == pytest.approx(1, rel=1e-5) for line in lines)
    assert ARMS["nap_linear"].label in (tmp_path / "x" / "summary.md").read_text()
