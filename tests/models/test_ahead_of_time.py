"""Every model compiles for a slice of sixteen TPUs that are not there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.meshes import COLLECTIVES

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
from normjax import sharding
from pallas_kernels.analysis import tpu
from tests.models.meshes import collectives
from tests.models.steps import MODELS, program

mesh = sharding.make_mesh(8, 2, devices=tpu.slice_devices("v5e:4x4"))
found = {name: sorted(collectives(program(name, mesh, sharding.MIXED)[1].compile())) for name in MODELS}
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_models_compile_for_a_slice_with_the_collectives_expected():
    """In a process of its own: whoever loads libtpu first decides on its flags."""
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 6
    for name, kinds in found.items():
        assert {"all-gather", "all-reduce"} <= set(kinds) <= COLLECTIVES["mixed"], (name, kinds)
