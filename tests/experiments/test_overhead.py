"""The overhead command: every optimizer is timed, compiled once, and never reaches for the host."""

from experiments import overhead


def test_small_run(tmp_path):
    config = overhead.Config(rounds=2, seeds=2, width=8, batch_size=8, steps=3, out=tmp_path / "overhead.json")
    result = overhead.measure(config)
    assert list(result["optimizers"]) == list(overhead.OPTIMIZERS)
    assert result["optimizers"]["adam"]["ratio"] == 1
    assert all(row["compilations"] == 1 and row["microseconds_per_step"] > 0 for row in result["optimizers"].values())
