"""The inference command: every form computes what it was made from, and folding leaves fewer operations."""

from experiments import inference_cost


def test_small_run(tmp_path, monkeypatch):
    # Every norm is folded in tests/fold; here one with running statistics is enough.
    monkeypatch.setattr(inference_cost, "NORMS", {n: inference_cost.NORMS[n] for n in ("Pre-LN", "UN")})
    config = inference_cost.Config(layers=1, features=16, tokens=4, rounds=1, out=tmp_path / "cost.json")
    result = inference_cost.measure(config)
    rows = result["forms"]
    assert set(inference_cost.CLAIMS) < set(rows)
    for name, row in rows.items():
        # One block in float32: the promise for a whole model.
        assert row["error"] < 1e-4, name
        assert row["milliseconds"] > 0
    for name in ("Pre-LN", "UN", "Pre-RMS"):
        assert rows[f"{name}, folded"]["instructions"] < rows[name]["instructions"]
    assert rows["Pre-RMS"]["instructions"] < rows["Pre-LN"]["instructions"]
    assert inference_cost.table(result, None).row_count == len(rows)
