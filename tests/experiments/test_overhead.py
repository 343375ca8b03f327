"""The overhead command: every optimizer is timed, compiled once, and never reaches for the host."""

import jax
import jax.numpy as jnp

from experiments import overhead


def test_small_run(tmp_path, monkeypatch):
    # The first, and the one that holds all that the others add to it.
    kept = {name: overhead.OPTIMIZERS[name] for name in ("adam", "the same, affine decayed")}
    monkeypatch.setattr(overhead, "OPTIMIZERS", kept)
    config = overhead.Config(rounds=2, seeds=2, width=8, batch_size=8, steps=3, out=tmp_path / "overhead.json")
    result = overhead.measure(config)
    assert list(result["optimizers"]) == list(overhead.OPTIMIZERS)
    assert result["optimizers"]["adam"]["ratio"] == 1
    for row in result["optimizers"].values():
        assert row["compilations"] == 1
        assert row["host_calls"] == 0
        assert row["microseconds_per_step"] > 0


def test_language_model():
    config = overhead.Config(rounds=2, layers=1, features=8, sequences=2, length=4)
    rows = overhead.measure_language_model(config)
    assert len(rows) == 3
    assert rows["adamw"]["ratio"] == 1
    assert all(row["milliseconds_per_step"] > 0 for row in rows.values())


def test_host_calls_are_seen():
    def body(x, _):
        jax.debug.print("{}", x[0])
        return x + jax.pure_callback(lambda x: x, x, x), None

    lowered = jax.jit(lambda x: jax.lax.scan(body, x, length=3)).lower(jnp.ones(2))
    assert overhead.host_calls(lowered) == 2
    assert overhead.host_calls(jax.jit(jnp.sin).lower(jnp.ones(2))) == 0
