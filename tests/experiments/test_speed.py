"""The speed command times every method, and its formulas compute what the methods compute."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import normjax as nj
from experiments import UsageError, timing
from experiments.speed import Config, catalogue, run
from experiments.speed.entry import arguments
from experiments.speed.measure import DisagreementError, check, measure
from normjax._method import methods

SMALL = {"tokens": (2, 4, 64), "images": (4, 3, 3, 64)}


@pytest.fixture(autouse=True)
def standard_promotion():
    """The plain formulas are written as a user would write them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def small(name):
    return next(e for e in catalogue.entries(**SMALL) if e.name == name)


def test_every_method_is_timed():
    assert {e.name for e in catalogue.entries(**SMALL)} == set(methods(vars(nj)))


@pytest.mark.parametrize("entry", catalogue.entries(**SMALL), ids=lambda e: e.name)
def test_the_formula_is_the_norm(entry):
    params, state, x, _ = arguments(entry)
    both = jax.jit(lambda *given, **context: [f(*given, **context) for f in (entry.ours, entry.formula)])
    check(entry, "forward", *both(params, state, x, **entry.context))


def test_another_formula_is_noticed():
    wrong = dataclasses.replace(small("layer_norm"), formula=lambda params, state, x: x)
    with pytest.raises(DisagreementError, match="layer_norm, forward: norm and formula differ by"):
        measure(wrong, 1)


def test_a_wrong_gradient_is_noticed():
    entry = small("layer_norm")
    halved = dataclasses.replace(entry, formula=lambda p, s, x: entry.formula(p, s, _half_gradient(x)))
    with pytest.raises(DisagreementError, match="layer_norm, backward"):
        measure(halved, 1)


def _half_gradient(x):
    return (x + jax.lax.stop_gradient(x)) / 2


@pytest.mark.parametrize("name", ["rms_norm", "qk_norm", "gated_rms_norm"])
def test_a_row_has_every_direction_and_ratio(name):
    row = measure(small(name), 2)
    for direction in ("forward", "backward", "forward and backward"):
        assert row[direction].keys() == {"copy_milliseconds", "normjax", "plain", "to plain", "fastest to plain"}
        assert all(value > 0 for value in row[direction].values())
    assert run.table([row]).row_count == 3


def test_a_backward_pass_that_is_no_derivative_is_not_compared():
    assert "backward" not in measure(small("power_norm"), 1)


def test_exceeding_results_are_named_and_the_status_says_so(monkeypatch, tmp_path, capsys):
    direction = {"copy_milliseconds": 1.0, "normjax": 3.0, "plain": 2.0, "to plain": 1.5, "fastest to plain": 1.3}
    row = {"name": "rms_norm", "shape": (2, 3), "dtype": "float32", "forward": direction}
    monkeypatch.setattr(run, "measure", lambda entry, rounds: row)
    out = tmp_path / "speed.json"
    with pytest.raises(SystemExit) as status:
        run.main(Config(only=("rms_norm",), against="plain", out=out))
    assert status.value.code == 1
    assert "rms_norm 2×3 float32, forward: 1.50 to plain, 1.30 in the fastest rounds" in capsys.readouterr().out
    assert json.loads(out.read_text())["rows"][0]["forward"] == direction
    direction["fastest to plain"] = 1.0
    assert run.main(Config(only=("rms_norm",), against="plain")) == [row]


def test_ratios_are_medians_of_the_same_round():
    times = {"a": np.array([1.0, 2.0, 9.0]), "b": np.array([1.0, 1.0, 3.0])}
    assert timing.ratio(times, "a", "b") == 2.0
    assert timing.ratio_of_fastest(times, "a", "b") == 1.0


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match=r"no_such_norm.*rms_norm"):
        run.main(Config(only=("no_such_norm",)))
    with pytest.raises(UsageError, match="torch"):
        Config(against="torch")
