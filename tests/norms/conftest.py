"""The battery compiles thousands of small functions once each: their compilation is what it waits for."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """LLVM's optimizations off: the same HLO in two thirds of the time.

    What the optimized code rounds is tested on the recorded vectors and by the accuracy table.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
