"""What the arms do to the weights, and what they share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.plasticity import Config
from experiments.plasticity.arms import ARMS
from experiments.plasticity.training import METRICS, Trainer, make_trainer, run_task, standardize

# Strong pulls, so that a few steps show them.
CONFIG = Config(
    images=32,
    steps=6,
    batch_size=8,
    width=12,
    depth=2,
    seeds=2,
    weight_decay=20.0,
    l2_init=0.5,
    affine_decay=0.5,
    readout_decay=0.5,
)
SEEDS = jnp.arange(2, dtype=jnp.int32)
RATE = 1e-2


class Run(NamedTuple):
    trainer: Trainer
    initial: Any
    final: Any
    measured: list[dict[str, np.ndarray]]


@functools.cache
def _run(name):
    """Three tasks of an arm, compiled once for all tests; copies, since the next task consumes the state."""
    images = np.random.default_rng(0).integers(0, 16, size=(32, 4, 4, 1)).astype(np.uint8)
    arm, rate = ARMS[name], jnp.float32(RATE)
    trainer = make_trainer(arm, CONFIG, standardize(images))
    state = trainer.init(SEEDS, rate, jnp.int32(0))
    initial = jax.tree.map(np.array, state.params)
    measured = []
    for task in range(3):
        state, metrics = run_task(arm, trainer, CONFIG, state, SEEDS, rate, jnp.int32(task))
        measured.append(jax.tree.map(np.asarray, metrics))
    return Run(trainer, initial, jax.tree.map(np.array, state.params), measured)


def _norms(params, layer, name="kernel"):
    return np.linalg.norm(np.asarray(params[layer][name], np.float64).reshape(2, -1), axis=1)


def _distances(name, layer, leaf):
    run = _run(name)
    return np.linalg.norm((run.final[layer][leaf] - run.initial[layer][leaf]).reshape(2, -1), axis=1)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_reports_every_metric_and_compiles_once(name):
    run = _run(name)
    assert run.trainer.train._cache_size() == 1
    assert set(run.measured[-1]) == set(METRICS)
    for metric, values in run.measured[-1].items():
        assert values.shape == (2,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all() != (metric == "affine_norm" and name == "plain")


def test_another_learning_rate_does_not_recompile():
    trainer = _run("nap").trainer
    rate, task = jnp.float32(1e-3), jnp.int32(0)
    run_task(ARMS["nap"], trainer, CONFIG, trainer.init(SEEDS, rate, task), SEEDS, rate, task)
    assert trainer.train._cache_size() == 1


def test_fresh_network_is_ln_in_its_first_task_and_new_in_each_other():
    fresh, ln = _run("fresh"), _run("ln")
    for metric in METRICS:
        np.testing.assert_array_equal(fresh.measured[0][metric], ln.measured[0][metric], err_msg=metric)
    # Six Adam steps from a new initialisation reach no further than six times the learning rate.
    assert all(np.abs(fresh.final["norm_0"]["scale"] - 1).max(axis=1) < 6.1 * RATE)
    assert not np.array_equal(fresh.measured[1]["online_accuracy"], ln.measured[1]["online_accuracy"])


def test_arms_share_initial_weights_and_seeds_do_not():
    jax.tree.map(np.testing.assert_array_equal, _run("nap").initial, _run("ln").initial)
    kernel = _run("ln").initial["hidden_0"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize("name", ["nap", "nap_decay", "nap_decay_readout"])
def test_nap_keeps_hidden_norms_and_their_effective_rate(name):
    run = _run(name)
    for layer in ("hidden_0", "hidden_1"):
        np.testing.assert_allclose(_norms(run.final, layer), _norms(run.initial, layer), rtol=1e-6)
    np.testing.assert_allclose(run.measured[-1]["hidden_effective_lr"], RATE, rtol=1e-6)
    assert (np.abs(run.measured[-1]["readout_norm_ratio"] - 1) > 1e-3).all()


def test_effective_rate_is_nominal_over_growth():
    run = _run("ln")
    metrics = run.measured[-1]
    assert (metrics["hidden_norm_ratio"] > 1).all()
    np.testing.assert_allclose(metrics["readout_effective_lr"], RATE / metrics["readout_norm_ratio"], rtol=1e-5)
    # The tracker measured at most a task's 6 steps before the end, each changing a norm by up to 1e-2 per weight.
    growth = _norms(run.final, "readout") / _norms(run.initial, "readout")
    np.testing.assert_allclose(metrics["readout_norm_ratio"], growth, rtol=0.3)


@pytest.mark.parametrize(
    ("name", "layer", "leaf"),
    [
        ("ln_decay_readout", "norm_0", "scale"),
        ("ln_decay_readout", "norm_1", "bias"),
        ("ln_decay_readout", "readout", "kernel"),
        ("ln_l2init", "hidden_0", "kernel"),
        ("ln_l2init", "norm_0", "scale"),
        ("ln_l2init", "readout", "bias"),
        ("ln_wd_decay", "norm_0", "scale"),
        ("nap_decay", "norm_0", "scale"),
        ("nap_decay", "norm_1", "bias"),
        ("nap_decay_readout", "norm_0", "scale"),
        ("nap_decay_readout", "readout", "kernel"),
        ("nap_decay_readout", "readout", "bias"),
    ],
)
def test_pulled_parameters_stay_near_where_they_began(name, layer, leaf):
    assert (_distances(name, layer, leaf) < 0.5 * _distances("ln", layer, leaf)).all()


def test_weight_decay_shrinks_kernels_and_spares_scales():
    decayed, free = _run("ln_wd").final, _run("ln").final
    for layer in ("hidden_0", "hidden_1", "readout"):
        assert (_norms(decayed, layer) < 0.5 * _norms(free, layer)).all()
    assert (_norms(decayed, "norm_0", "scale") > 0.8 * _norms(free, "norm_0", "scale")).all()
