"""Flax's own normalization tests with normjax's modules swapped in; `NORMJAX_FLAX_TESTS` names a Flax checkout."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXPECTED = json.loads(pathlib.Path(__file__).with_name("expected_differences.json").read_text())
USED = ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "WeightNorm", "SpectralNorm")
FILES = {
    "linen": ("tests/linen/linen_test.py", "NormalizationTest"),
    "nnx": ("tests/nnx/nn/normalization_test.py", "TestLinenConsistency"),
}


def reason(test):
    """Why a test may differ, or None; names of parametrized tests end in their number."""
    return EXPECTED.get(test) or EXPECTED.get(re.sub(r"\d+$", "", test))


@pytest.mark.parametrize("kind", FILES)
def test_flax_s_own_tests_pass_bar_the_documented_differences(kind):
    checkout = os.environ.get("NORMJAX_FLAX_TESTS")
    if not checkout:
        pytest.skip("NORMJAX_FLAX_TESTS is not set: give it the path of a checkout of google/flax")
    name, case = FILES[kind]
    path = pathlib.Path(checkout) / name
    assert path.is_file(), (
        f"NORMJAX_FLAX_TESTS={checkout} has no {name}; expected the root of a checkout of google/flax"
    )
    command = [sys.executable, "-m", "tests.flax_parity.run_flax_tests", str(path), case]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    differed = report["differed"]
    print(f"\nFlax {report['flax']}, {case}: {len(report['passed'])} passed")
    for test in sorted(differed):
        print(f"  differs: {test}: {reason(test)}")
    unexpected = {test: text for test, text in differed.items() if reason(test) is None}
    assert not unexpected, "\n\n".join(f"{test}:\n{text}" for test, text in unexpected.items())
    # An entry that no longer differs is a stale line in the document.
    stale = [test for test in report["passed"] if reason(test) is not None]
    assert not stale, f"documented as different but passing: {stale}"
    assert len(report["passed"]) > 2 * len(differed)
    assert all(report["taken"][kind].get(module) for module in USED), report["taken"]
