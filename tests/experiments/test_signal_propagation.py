"""The laws of the placements at initialization, with the thresholds of measurements at this size."""

import json

import numpy as np
import pytest

from experiments import UsageError, signal_propagation
from experiments.signal_propagation import Config, measure

LAYERS = 16
DEPTHS = np.arange(1, LAYERS + 1)


@pytest.fixture(scope="module")
def rows():
    names = ("pre", "post", "peri", "deep", "keel")
    return {name: measure(name, Config(layers=LAYERS)) for name in names}


def straightness(x, y):
    """Slope and R² of a line through the points."""
    slope, start = np.polyfit(x, y, 1)
    return slope, 1 - np.var(y - slope * x - start) / np.var(y)


def test_pre_grows_by_a_constant_per_block_and_its_gradients_fall(rows):
    squares, gradient = rows["pre"]["mean_square"], rows["pre"]["gradient"]
    slope, fit = straightness(DEPTHS, squares)
    assert fit > 0.98
    assert 0.7 < slope < 1.6
    # The norm before the sublayer divides by the stream: gradient times root mean square is constant.
    products = gradient * np.sqrt(squares)
    assert products.std() < 0.15 * products.mean()


def test_peri_adds_its_scale_twice_a_block_whatever_the_weights(rows):
    squares = rows["peri"]["mean_square"]
    slope, fit = straightness(DEPTHS, squares)
    assert fit > 0.98
    assert 1.6 < slope < 2.4
    doubled = measure("peri", Config(gain=2.0, layers=LAYERS))["mean_square"]
    np.testing.assert_allclose(doubled[:8], squares[:8], rtol=0.15)


def test_layer_norm_scaling_grows_like_the_harmonic_numbers():
    # Every block differs from the others, so that nothing is scanned: a shallow stack compiles faster.
    squares = measure("layer_norm_scaling", Config(layers=8))["mean_square"]
    _, fit = straightness(np.cumsum(1 / DEPTHS[:8]), squares)
    assert fit > 0.95


@pytest.mark.parametrize("name", ["post", "deep", "keel"])
def test_a_norm_after_the_sum_keeps_the_stream(rows, name):
    np.testing.assert_allclose(rows[name]["mean_square"], 1, rtol=1e-3)


@pytest.mark.parametrize("name", ["deep", "keel"])
def test_scaled_residuals_keep_the_gradients(rows, name):
    gradient = rows[name]["gradient"]
    assert gradient[-1] / gradient[0] == pytest.approx(1, abs=0.02)


def test_pre_grows_with_the_weights(rows):
    doubled = measure("pre", Config(layers=LAYERS, gain=2.0))["mean_square"]
    slopes = [straightness(DEPTHS[:8], squares[:8])[0] for squares in (doubled, rows["pre"]["mean_square"])]
    # Values and outputs are both twice as large, and so are the two matrices of the feed-forward: 2⁴ = 16.
    assert slopes[0] > 10 * slopes[1]


def test_the_last_gradient_falls_with_depth_under_pre_only(rows):
    last = {
        name: [measure(name, Config(layers=4))["gradient"][-1], rows[name]["gradient"][-1]] for name in ("pre", "post")
    }
    # By the root of the depth, 2 here: the stream it reaches through the final norm is that much longer.
    assert last["pre"][0] / last["pre"][1] == pytest.approx(2, rel=0.25)
    assert last["post"][0] / last["post"][1] == pytest.approx(1, rel=0.25)


def test_post_gradients_grow_towards_the_output(rows):
    gradient = rows["post"]["gradient"]
    assert 1.2 < gradient[-1] / gradient[0] < 2


def test_reordered_adds_its_scale_and_amplifies_gradients_of_large_weights():
    row = measure("reordered", Config(layers=LAYERS))
    slope, fit = straightness(DEPTHS, row["mean_square"])
    assert fit > 0.98
    assert 1.6 < slope < 2.4
    # Each sublayer adds a vector of root mean square 1, so that no block adds more than 2.
    roots = np.sqrt(row["mean_square"])
    assert np.all(np.diff(roots, prepend=1) < 2 * 1.02)
    # Nothing divides what enters a sublayer: the reason for the small initial values of OLMo 2.
    assert row["gradient"][0] > 20 * row["gradient"][-1]


def test_table_files_and_figure(tmp_path):
    rows = signal_propagation.run(Config(only=("pre", "mix"), layers=3, out=tmp_path))
    assert signal_propagation.table(rows, 3).row_count == 2
    written = json.loads((tmp_path / "signal_propagation.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["pre", "mix"]
    assert len(written["rows"][0]["mean_square"]) == 3
    assert (tmp_path / "signal_propagation.png").stat().st_size > 10_000


def test_an_unknown_placement_is_named():
    with pytest.raises(UsageError, match="--only nowhere names no placement; there are: pre, post"):
        Config(only=("nowhere",))
