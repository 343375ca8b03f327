"""The speed command times every method, and its formulas compute what the methods compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from experiments import UsageError, timing
from experiments.speed import Config, catalogue, run
from normjax._method import methods

SMALL = {"tokens": (2, 4, 64), "images": (4, 3, 3, 64)}


@pytest.fixture(autouse=True)
def standard_promotion():
    """The plain formulas are written as a user would write them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_every_method_is_timed():
    described = {name for name, method in methods(vars(nj)).items() if method.family != "weight"}
    # Two RMS norms, and batch normalization by another name.
    assert {e.name for e in catalogue.entries(**SMALL)} == described - {"qk_norm", "mask_carrying_norm"}


@pytest.mark.parametrize("entry", catalogue.entries(**SMALL), ids=lambda e: e.name)
def test_the_formula_is_the_norm(entry):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(entry.shape), entry.dtype)
    params, state = entry.norm.init(jax.random.key(0), x, **entry.context)
    noisy = jax.tree.map(lambda p: p + 0.1 * jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    run.check(entry, noisy, state, x)


def test_another_formula_is_noticed():
    entry = next(e for e in catalogue.entries(**SMALL) if e.name == "layer_norm")
    wrong = dataclasses.replace(entry, formula=lambda params, state, x: x)
    with pytest.raises(AssertionError, match="layer_norm: norm and formula differ by"):
        run.measure(wrong, 1)


def test_a_row_has_every_direction_and_ratio():
    entry = next(e for e in catalogue.entries(**SMALL) if e.name == "rms_norm")
    row = run.measure(entry, 2)
    for direction in ("forward", "backward", "forward and backward"):
        assert row[direction].keys() == {"copy_milliseconds", "normjax", "plain", "to plain"}
        assert all(value > 0 for value in row[direction].values())
    assert run.table([row]).row_count == 3


def test_ratios_are_medians_of_the_same_round():
    times = {"a": np.array([1.0, 2.0, 9.0]), "b": np.array([1.0, 1.0, 3.0])}
    assert timing.ratio(times, "a", "b") == 2.0


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match=r"no_such_norm.*rms_norm"):
        run.main(Config(only=("no_such_norm",)))
    with pytest.raises(UsageError, match="torch"):
        Config(against="torch")
