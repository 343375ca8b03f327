"""How comparisons of whole blocks are compiled."""

import contextlib

import jax


@contextlib.contextmanager
def quick_compilation():
    """LLVM's optimizations off: half the time. The norms in these blocks are compared with them on elsewhere."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
