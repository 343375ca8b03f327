"""Independent runs of one compiled function, one after the other on each device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_runs(function: Callable[..., Any], devices: int, mapped: int = 2) -> Callable[..., Any]:
    """Compiles a function of one run for all runs: `vmap` would make grouped convolutions of the networks' own.

    Args:
      function: `function(*of_run, *common)`, of one run.
      devices: Over how many devices the runs are spread; it divides their number.
      mapped: How many of its arguments, at most, belong to the run: a state and what it is trained on, say.

    Returns:
      The compiled function. Arguments that belong to a run, and all results, have a leading axis of runs.
    """
    mesh, split, whole = Mesh(np.asarray(jax.devices()[:devices]), ("runs",)), PartitionSpec("runs"), PartitionSpec()

    def local(of_runs, common):
        return jax.lax.map(lambda of_run: function(*of_run, *common), of_runs)

    # No check of what varies over devices: the scan starts from constants and goes on with what does.
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)
    compiled, place = jax.jit(sharded), NamedSharding(mesh, split)
    # Placed first: a state fresh from `init` and one that a call returned would each be compiled for.
    return lambda *arguments: compiled(jax.device_put(arguments[:mapped], place), arguments[mapped:])
