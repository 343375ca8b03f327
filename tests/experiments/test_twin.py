"""The coupled networks: exact where theory says so, and visibly not elsewhere."""

import json

import jax
import pytest

from experiments import UsageError, twin

SMALL = twin.Config(images=64, batch_size=16, steps=25, width=8, depth=2, sgd_rate=0.5)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own optimizers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_twins_with_a_rate_per_layer_are_exact_and_the_others_are_not(tmp_path, monkeypatch):
    every = twin.twins(SMALL)
    # One rate for all differs from a constant one by a factor alone: compiling both asks nothing new.
    monkeypatch.setattr(twin, "twins", lambda config: [every[i] for i in (0, 1, 3, 4)])
    rows = twin.run(twin.dataclasses.replace(SMALL, out=tmp_path))
    assert sum(row["exact"] for row in rows) == 2
    for row in rows:
        # The first step is the same for all; what the moments or the rate lack shows from the second.
        assert row["difference"][0] < twin.EXACT
        assert (row["difference"].max() < twin.EXACT) == row["exact"], row["label"]
        assert row["exact"] or row["difference"].max() > 1e-6
        assert max(row["growth"]) > 1
    written = json.loads((tmp_path / "twin.json").read_text())
    assert [len(row["difference"]) for row in written["rows"]] == [SMALL.steps] * len(rows)
    assert (tmp_path / "twin.png").stat().st_size > 10_000


def test_what_should_be_exact_and_is_not_is_named(monkeypatch, capsys):
    wrong = twin.twins(SMALL)[2]._replace(exact=True)
    monkeypatch.setattr(twin, "twins", lambda config: [wrong])
    with pytest.raises(SystemExit) as status:
        twin.run(SMALL)
    assert status.value.code == 1
    assert "not exact to 1e-12: SGD, constant rate" in capsys.readouterr().out


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="--steps must be at least 1, got 0"):
        twin.Config(steps=0)
    with pytest.raises(UsageError, match="--batch-size 64 is larger than --images 8"):
        twin.Config(images=8)
