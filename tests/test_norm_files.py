"""A norm is one file that is read in one sitting."""

import pathlib
import statistics

import pytest

import normjax.norms

FILES = sorted(p for p in pathlib.Path(normjax.norms.__file__).parent.glob("*.py") if not p.name.startswith("_"))


def lines(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_norm_file_is_short(path):
    assert lines(path) <= 200


def test_the_median_norm_file_is_shorter():
    assert statistics.median(map(lines, FILES)) < 120
