"""A norm, or a reparametrization of weights, is one file that is read in one sitting."""

import pathlib
import statistics

import pytest

import normjax

ROOMS = [pathlib.Path(room.__file__).parent for room in (normjax.norms, normjax.weights)]
FILES = sorted(p for room in ROOMS for p in room.glob("*.py") if not p.name.startswith("_"))


def lines(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_norm_file_is_short(path):
    assert lines(path) <= 200


def test_the_median_norm_file_is_shorter():
    assert statistics.median(map(lines, FILES)) < 120
