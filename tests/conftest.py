"""Strict settings for the whole suite: no implicit promotion, no rank promotion, warnings are errors (pyproject)."""

import atexit
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


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """LLVM's optimizations off where thousands of small functions are compiled, most of them once.

    The same HLO in two thirds of the time. What the optimized code rounds is tested by everything else: the recorded
    vectors, projections over thousands of steps, the accuracy table.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    folder, file = request.path.parent.name, request.path.stem
    many = folder in (
        "diagnostics",
        "flax_parity",
        "fold",
        "loaders",
        "models",
        "norms",
        "optim",
        "pallas_kernels",
        "weights",
    )
    many |= file in ("test_signal_propagation", "test_speed", "test_inference_cost", "test_twin")
    # Thousands of steps in bfloat16 are about what the optimized code rounds.
    commands = file in ("test_public_surface", "test_language_model", "test_overhead", "test_throughput")
    if (many or commands) and file != "test_optim_projection":
        jax.config.update("jax_disable_most_optimizations", True)
        # Nothing in them is compiled twice: what is kept is never read.
        jax.config.update("jax_enable_compilation_cache", folder in ("flax_parity", "optim") or not many)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.config.update("jax_enable_compilation_cache", True)
