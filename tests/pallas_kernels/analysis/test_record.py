"""Files of rows: what is measured again takes its old place, and two compilers are not mixed."""

import json

import pytest

from pallas_kernels import _record

NAMES = ("chip", "kernel")


def test_rows_take_their_old_places(tmp_path):
    path = tmp_path / "new" / "rows.json"
    rows = [{"chip": "v5e", "kernel": k, "us": 1} for k in "ab"]
    _record.merge(path, NAMES, rows, chips={"v5e": {"clock": 1.5}})
    _record.merge(path, NAMES, [{"chip": "v6e", "kernel": "a", "us": 2}], chips={"v6e": {"clock": 1.75}})
    _record.merge(path, NAMES, [{"chip": "v5e", "kernel": "a", "us": 3}])
    found = _record.read(path)
    assert [tuple(row.values()) for row in found["rows"]] == [("v5e", "a", 3), ("v5e", "b", 1), ("v6e", "a", 2)]
    assert found["chips"] == {"v5e": {"clock": 1.5}, "v6e": {"clock": 1.75}}
    assert found["versions"]["jax"] == _record.versions("jax")["jax"]


def test_another_compiler_is_refused_and_a_further_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    monkeypatch.setattr(_record, "versions", lambda *_: {"python": "3.11.7", "libtpu": "0.1"})
    _record.merge(path, NAMES, [{"chip": "v5e", "kernel": "a"}])
    monkeypatch.setattr(_record, "versions", lambda *_: {"python": "3.13.1", "jax-cuda13-plugin": "0.2"})
    _record.merge(path, NAMES, [{"chip": "h100", "kernel": "a"}])
    before = path.read_text()
    assert json.loads(before)["versions"] == {"python": "3.13.1", "libtpu": "0.1", "jax-cuda13-plugin": "0.2"}
    monkeypatch.setattr(_record, "versions", lambda *_: {"python": "3.11.7", "libtpu": "0.3"})
    with pytest.raises(ValueError, match=r"was written with libtpu 0\.1, and this is libtpu 0\.3: .* name another"):
        _record.merge(path, NAMES, [])
    assert path.read_text() == before
