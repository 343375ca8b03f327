"""Reads compiled HLO: the evidence for which collectives and which kernels a program really contains."""

import collections
import re

import jax

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def count_collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Counts the collective operations of a compiled program.

    An asynchronous collective is counted once, at its start. A combined one (several arrays in one tuple) is one
    operation, as it is one message.

    Args:
      compiled: What `jax.jit(f).lower(...).compile()` returns.

    Returns:
      `{operation: count}` with the operations that occur, by their HLO names.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> count_collectives(jax.jit(jnp.sum).lower(jnp.ones(4)).compile())
      {}
    """
    pattern = re.compile(rf"= \S.*? ({'|'.join(COLLECTIVES)})(?:-start)?\(")
    found = collections.Counter(match.group(1) for match in pattern.finditer(compiled.as_text() or ""))
    return dict(sorted(found.items()))


def custom_call_targets(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Counts the custom calls of a compiled program by target: `tpu_custom_call`, `__gpu$xla.gpu.triton`, ...

    Args:
      compiled: What `jax.jit(f).lower(...).compile()` returns.

    Returns:
      `{target: count}`, sorted by target.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> custom_call_targets(jax.jit(jnp.sum).lower(jnp.ones(4)).compile())
      {}
    """
    found = collections.Counter(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text() or ""))
    return dict(sorted(found.items()))
