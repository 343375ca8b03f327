"""From a function and a chip to a report."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pallas_kernels.analysis import fetches, gpu, tpu
from pallas_kernels.analysis.chips import Gpu, Tpu
from pallas_kernels.analysis.chips import chip as chip_named
from pallas_kernels.analysis.report import Report


def analyse(function: Callable, args: tuple, chip: str, *, ideal_bytes: int | None = None) -> Report:
    """Compiles a function for one device of a chip that need not be there, and measures the program.

    For a TPU in a process that has not used libtpu yet: the compiler reads the flags of its dumps when it is loaded.

    Args:
      function: Any function of arrays that `jax.jit` takes.
      args: Its arguments: trees of arrays or `jax.ShapeDtypeStruct`, of which only shapes and dtypes matter.
      chip: "v4", "v5e", "v5p", "v6e", "tpu7x", "h100", "h200" or "a100".
      ideal_bytes: What the program should move; by default its arguments and results, once each.

    Returns:
      The report.

    Raises:
      ValueError: If the chip is unknown.
      ModuleNotFoundError: If libtpu or the CUDA plugin is missing.
      jax.errors.JaxRuntimeError: If the compiler refuses, for instance because blocks do not fit into VMEM.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from pallas_kernels import analysis
      >>> x = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
      >>> if analysis.available("v5e"):
      ...     assert analysis.analyse(jnp.tanh, (x,), "v5e").ratio == 1.0
    """
    target, mesh = chip_named(chip), _mesh(chip)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
    with traced_for(chip):
        traced = jax.jit(function).trace(*placed)
        lowered = traced.lower()
    copies = fetches.copies(traced.jaxpr)
    ideal = bytes_of((args, traced.out_info)) if ideal_bytes is None else ideal_bytes
    if isinstance(target, Gpu):
        return gpu.compile_and_read(lowered, target, ideal, copies)
    tpu.begin()
    return tpu.read(lowered.compile(), target, ideal, copies)


def _mesh(chip: str) -> jax.sharding.Mesh:
    target = chip_named(chip)
    devices = tpu.devices(target) if isinstance(target, Tpu) else gpu.devices(target)
    return jax.sharding.Mesh(np.array(devices[:1]), ("device",))


def traced_for(chip: str) -> contextlib.AbstractContextManager:
    """Where to trace what is analysed later: a backward pass, say, which holds a program already.

    Triton's lowering asks the mesh around the trace for the GPU's compute capability, else this machine.
    """
    return jax.sharding.use_abstract_mesh(_mesh(chip).abstract_mesh)


def available(chip: str) -> bool:
    """Whether the compiler for a chip is installed.

    Args:
      chip: As in `analyse`.

    Returns:
      Whether `analyse` can compile for it.

    Example:
      >>> from pallas_kernels import analysis
      >>> isinstance(analysis.available("v5e"), bool)
      True
    """
    return tpu.available() if isinstance(chip_named(chip), Tpu) else gpu.available()


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, without padding."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
