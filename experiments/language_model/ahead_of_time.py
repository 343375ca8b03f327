"""Compiles a training chunk for a TPU slice that is not there, and says what it needs: memory and collectives."""

import dataclasses
import re
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments import UsageError
from experiments.language_model import arms
from experiments.language_model.config import Config, Mesh
from experiments.language_model.training import Runs, make_mesh, make_trainer, validation_batches
from pallas_kernels.analysis import tpu

# A TPU's compiler turns many gatherings of cut matrices, and sums of their gradients, into permutations: parts go round
# a ring while they are multiplied. Under `fsdp` and `mixed` they are no sign of a misplaced array.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Program(NamedTuple):
    """A compiled chunk of one arm.

    Attributes:
      state_bytes: Parameters, moments and the rest of the optimizer's state on each device, updated in place.
      working_bytes: What a step needs besides.
      collectives: How many of each kind the program has.
    """

    state_bytes: int
    working_bytes: int
    collectives: dict[str, int]


def devices(topology: str) -> list[Any]:
    """The devices of a slice, for instance of `v5e:4x4`.

    Raises:
      UsageError: If libtpu is not installed or does not know the slice.
    """
    try:
        return tpu.slice_devices(topology)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--compile-for {topology} is not a TPU slice that libtpu knows: {error}") from error


def compile_chunk(config: Config, arm: arms.Arm, targets: list[Any]) -> Program:
    """Compiles a chunk; nothing is allocated.

    Args:
      config: With a mesh.
      arm: The arm.
      targets: The devices.

    Returns:
      What the compiler says of it.
    """
    mesh = make_mesh(config, targets)
    trainer, _ = make_trainer(arm, config, mesh)
    count = config.seeds * len(config.rates)
    runs = Runs(*(jax.ShapeDtypeStruct((count,), dtype) for dtype in (jnp.int32, jnp.float32)))
    windows = (config.batch_size, config.length + 1)
    batches = jax.ShapeDtypeStruct((count, config.chunk, *windows), jnp.uint8)
    validation = jax.ShapeDtypeStruct((validation_batches(config), *windows), jnp.uint8)
    chunk: Any = trainer.chunk
    compiled = chunk.lower(jax.eval_shape(trainer.init, runs), runs, batches, validation).compile()
    memory = compiled.memory_analysis()
    return Program(memory.alias_size_in_bytes, memory.temp_size_in_bytes, count_collectives(compiled.as_text()))


def count_collectives(hlo: str) -> dict[str, int]:
    """How many collectives of each kind a compiled program has."""
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", hlo)
    return {kind: found.count(kind) for kind in COLLECTIVES if kind in found}


def show(config: Config, console: Console) -> dict[tuple[str, str], Program]:
    """Compiles every arm for every mesh, or for the one given, and prints a table.

    Returns:
      The programs by arm and mesh.
    """
    assert config.compile_for is not None
    targets = devices(config.compile_for)
    table = Table(title=f"a chunk of {config.chunk} steps on {len(targets)} devices of {config.compile_for}")
    for i, column in enumerate(("arm", "mesh", "state, MiB per device", "working, MiB per device", "collectives")):
        table.add_column(column, justify="right" if i in (2, 3) else "left")
    programs = {}
    for name in config.arms:
        for mesh in get_args(Mesh) if config.mesh is None else (config.mesh,):
            program = compile_chunk(dataclasses.replace(config, mesh=mesh), arms.parse(name), targets)
            programs[name, mesh] = program
            sizes = (f"{size / 2**20:,.0f}" for size in (program.state_bytes, program.working_bytes))
            listed = ", ".join(f"{count} {kind}" for kind, count in program.collectives.items())
            table.add_row(name, mesh, *sizes, listed)
    console.print(table)
    return programs
