"""Metrics and intervals against NumPy in float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.plasticity import metrics, training
from experiments.plasticity.summary import collect, summarize, window
from experiments.plasticity.training import METRICS
from experiments.statistics import t_interval

F32 = float(np.finfo(np.float32).eps)


def test_dead_units_are_zero_on_every_input(rng):
    activations = np.maximum(rng.normal(size=(64, 10)), 0).astype(np.float32)
    activations[:, [2, 7]] = 0
    activations[:63, 4] = 0
    activations[63, 4] = 1e-6  # alive for one input is alive
    assert float(metrics.dead_units(jnp.asarray(activations))) == pytest.approx(0.2, abs=F32)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_effective_rank_against_float64(rng, rank):
    features = rng.normal(size=(128, rank)) @ rng.normal(size=(rank, 16))
    singular = np.linalg.svd(features, compute_uv=False)
    p = singular[:rank] / singular[:rank].sum()
    oracle = np.exp(-(p * np.log(p)).sum())
    # float32 leaves each of the 16 singular values off by some eps of the largest, which enters as -p log p.
    noise = 16 * 16 * F32
    tolerance = oracle * noise * -np.log(noise)
    assert float(metrics.effective_rank(jnp.asarray(features, jnp.float32))) == pytest.approx(oracle, abs=tolerance)


def test_effective_rank_of_equal_and_of_no_directions():
    assert float(metrics.effective_rank(jnp.eye(8))) == pytest.approx(8, rel=8 * F32)
    assert float(metrics.effective_rank(jnp.zeros((8, 4)))) == 0


def test_affine_norm(rng):
    layers = {f"norm_{i}": {"scale": rng.normal(size=6), "bias": rng.normal(size=6)} for i in range(2)}
    oracle = np.mean([np.sqrt((w["scale"] ** 2 + w["bias"] ** 2).sum() / 6) for w in layers.values()])
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), layers) | {"hidden_0": {"kernel": jnp.ones((2, 2))}}
    assert float(metrics.affine_norm(params)) == pytest.approx(oracle, rel=8 * F32)
    fresh = {"norm_0": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    assert float(metrics.affine_norm(fresh)) == 1
    assert np.isnan(float(metrics.affine_norm({"hidden_0": {"kernel": jnp.ones((2, 2))}})))


def test_t_interval_is_scipys(rng):
    samples = rng.normal(size=5)
    mean, half = t_interval(samples)
    low, high = stats.t.interval(0.95, 4, loc=samples.mean(), scale=stats.sem(samples))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)
    assert half == pytest.approx(2.776445 * samples.std(ddof=1) / np.sqrt(5), rel=1e-6)
    assert np.isnan(t_interval(samples[:1]).half_width)
    with pytest.raises(ValueError, match=r"one number per seed.*\(0,\)"):
        t_interval(np.zeros(0))


def test_batches_go_through_all_images_every_epoch():
    order = np.asarray(training.batches(jax.random.key(0), images=24, steps=7, batch_size=8))
    assert order.shape == (7, 8)
    for epoch in range(2):
        np.testing.assert_array_equal(np.sort(order[3 * epoch : 3 * epoch + 3].reshape(-1)), np.arange(24))
    assert not np.array_equal(order[:3], order[3:6])


def test_standardize_centres_pixels_at_one_scale(rng):
    images = rng.integers(0, 255, size=(50, 4, 4, 1)).astype(np.uint8)
    images[:, 0, 0] = 7  # a constant pixel stays finite
    x = np.asarray(training.standardize(images), np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    assert x.std() == pytest.approx(1, abs=1e-6)


def _records(arm, online):
    rest = dict.fromkeys(METRICS, [0.0] * len(online[0]))
    return [
        {**rest, "arm": arm, "learning_rate": 0.1, "task": t, "online_accuracy": list(row)}
        for t, row in enumerate(online)
    ]


def test_summary_pairs_by_seed(rng):
    tasks, seeds = 12, 4
    ln, fresh = rng.uniform(size=(2, tasks, seeds))
    rows = {row.arm: row for row in summarize(collect(_records("ln", ln) + _records("fresh", fresh)))}
    size = window(tasks)
    assert size == 2
    change = ln[-size:].mean(axis=0) - ln[:size].mean(axis=0)
    versus = (ln - fresh)[-size:].mean(axis=0)
    np.testing.assert_allclose(rows["ln"].change, t_interval(change), rtol=1e-12)
    np.testing.assert_allclose(rows["ln"].versus_fresh, t_interval(versus), rtol=1e-12)
    np.testing.assert_allclose(rows["ln"].online.mean, ln.mean(), rtol=1e-12)
    assert rows["fresh"].versus_fresh is None


def test_summary_of_one_seed_has_open_intervals():
    (row,) = summarize(collect(_records("ln", [[0.5], [0.25]])))
    assert row.change.mean == -0.25
    assert np.isnan(row.change.half_width)
