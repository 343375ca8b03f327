import json
import math

import numpy as np
import pytest

from experiments import accuracy

SMALL = {"width": 48, "rows": 16, "offsets": (0.0, 1e4), "spreads": (0.1,)}


def test_nobody_is_ahead_and_the_file_says_where_it_came_from(tmp_path, capsys):
    path = tmp_path / "sub" / "accuracy.json"
    rows = accuracy.main(accuracy.Accuracy(**SMALL, output=str(path)))
    assert len(rows) == 4 * 3 * (2 + 3)
    assert not any(row.ahead for row in rows)
    stored = json.loads(path.read_text())
    assert {"jax", "flax", "numpy", "device", "commit", "config", "rows"} <= stored.keys()
    assert len(stored["rows"]) == len(rows)
    assert "Nobody is ahead of normjax" in capsys.readouterr().out
    # The table can tell good from bad: the fast variance is wrong by orders of magnitude on offset data.
    (row,) = (r for r in rows if (r.norm, r.data, r.output_dtype) == ("LayerNorm", "N(10000, 0.1²)", "float32"))
    assert row.errors["linen"] > 1
    assert row.errors["linen"] > 1e5 * row.errors["normjax"]


def test_being_behind_fails_the_command(monkeypatch):
    errors = {"normjax": 3e-7, "nnx": 1e-7}
    row = accuracy.Row("LayerNorm", "x", "float32", "float32", 1e-7, errors, errors)
    assert row.ahead == ("nnx",)
    monkeypatch.setattr(accuracy, "measure", lambda config: [row])
    with pytest.raises(SystemExit) as stop:
        accuracy.main(accuracy.Accuracy(output=""))
    assert stop.value.code == 1


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [(2e-7, 1e-7, ()), (1.0, math.nan, ()), (2.1e-7, 1e-7, ("nnx",)), (math.nan, 1.0, ("nnx",))],
)
def test_who_is_ahead(ours, other, expected):
    errors = {"normjax": ours, "nnx": other}
    assert accuracy.Row("n", "d", "float32", "float32", 1e-7, errors, errors).ahead == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [1.0, 3.99, 1e-3, 700.0])
def test_half_ulp(value, dtype):
    import jax.numpy as jnp

    exact = np.asarray(value, jnp.dtype(dtype))
    gap = float(np.nextafter(exact, np.asarray(np.inf, exact.dtype)).astype(np.float64) - exact.astype(np.float64))
    assert accuracy.half_ulp(float(exact), dtype) == gap / 2


@pytest.mark.parametrize("wrong", [{"width": 12}, {"width": 50}, {"rows": 8}, {"rows": 20}])
def test_sizes_are_checked(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        accuracy.Accuracy(**wrong)
