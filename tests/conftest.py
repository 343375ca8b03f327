"""Strict settings for the whole suite: no implicit promotion, no rank promotion, warnings are errors (pyproject)."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices everywhere: sharded tests need no process of their own, the others run on the first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# JAX 0.10 compiles a norm in 60 % of the time without its fusion emitters; later versions have no such flag, and keep
# testing what the default makes of the same HLO.
if importlib.metadata.version("jaxlib") < "0.11":
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Thousands of small functions are compiled, most of them to run once: the same HLO in two thirds of the time without
# LLVM's optimizations. Processes that tests start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Nobody reads where in the source an operation of a compiled test comes from.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Small functions are compiled in one file after the other: the first process of a run makes a folder in which all of
# them keep what they have compiled, and removes it at the end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="normjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes objects by the million: looking for cycles among every two thousand takes a twentieth of the time.
gc.set_threshold(100_000, 20, 100)

# Derandomized, so that a failure in CI is the same failure everywhere; `nightly` looks further.
hypothesis.settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=200, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


def pytest_terminal_summary(terminalreporter):
    """Ends a run over the recorded vectors with the number of those covered and the names of the rest."""
    reports = [r for reports in terminalreporter.stats.values() for r in reports]
    if any("golden" in getattr(report, "nodeid", "") for report in reports):
        from tests.golden import adapters, vectors

        found = vectors.find()
        missing = [v.name for v in found if adapters.adapter(v) is None]
        terminalreporter.write_line(f"vectors: covered {len(found) - len(missing)}, not covered {len(missing)}")
        if missing:
            terminalreporter.write_line("not covered: " + " ".join(missing))


@pytest.fixture(scope="module", autouse=True)
def free_compiled_functions():
    """Compiled functions are shared within a file; keeping those of all files costs gigabytes."""
    yield
    jax.clear_caches()


# Where the optimized code's rounding is the point: thousands of steps in bfloat16, the accuracy table; and the recorded
# vectors, on the JAX version that compiles them fastest.
OPTIMIZED = {"test_optim_projection", "test_accuracy_table"}
if importlib.metadata.version("jaxlib") < "0.11":
    OPTIMIZED.add("test_golden")


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
    """LLVM's optimizations, where they pay."""
    jax.config.update("jax_disable_most_optimizations", request.path.stem not in OPTIMIZED)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
