"""Compiles for a GPU with the CUDA plugin and no GPU, and reads what the compiler chose."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jax
from jax.experimental import topologies

from pallas_kernels.analysis import traffic
from pallas_kernels.analysis.chips import Gpu
from pallas_kernels.analysis.report import OpReport, Report

MISSING = 'the CUDA plugin is not installed, so nothing can be compiled for a GPU; pip install "normjax[cuda]".'


def available() -> bool:
    """Whether a CUDA plugin is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def devices(chip: Gpu) -> list:
    """The compile-only device of that kind."""
    if not available():
        raise ModuleNotFoundError(MISSING)
    # The plugin is registered with the first backend; it would ask for cuDNN and its siblings, which no compile needs.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    # LLVM would look up the names of a stack trace that nobody reads, for seconds with every kernel.
    os.environ.setdefault("LLVM_DISABLE_SYMBOLIZATION", "1")
    topology = topologies.get_topology_desc(
        topology_name=chip.kind, platform="cuda", target_config=chip.target, topology="1x1x1"
    )
    return list(topology.devices)


def compile_and_read(
    lowered: jax.stages.Lowered, chip: Gpu, ideal_bytes: int, copies: dict[str, list[float]]
) -> Report:
    """The report of a program lowered for `chip`."""
    with tempfile.TemporaryDirectory(prefix="xla-dumps-") as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_emitter_re": ".*"})
        registers, spills = _assembled(pathlib.Path(folder))
    # A kernel's grid says nothing of its copies where blocks go through the cache.
    found = [OpReport(op, op.bytes / chip.bandwidth) for op in traffic.ops(compiled.as_text() or "", copies)]
    moved = sum(f.op.bytes for f in found)
    return Report(
        chip=chip.kind,
        hbm_bytes=moved,
        ideal_bytes=ideal_bytes,
        kernels=sum(f.op.bytes > 0 for f in found),
        seconds=moved / chip.bandwidth,
        memory_seconds=moved / chip.bandwidth,
        core_seconds=None,
        binding="HBM",
        ops=tuple(found),
        registers=registers,
        spills=spills,
    )


def ptxas() -> str | None:
    """The assembler: on the path, or in NVIDIA's Python packages."""
    packages = (pathlib.Path(path) / "nvidia" for path in sys.path)
    installed = [str(p) for root in packages for p in sorted(root.glob("*/bin/ptxas"))]
    return shutil.which("ptxas") or next(iter(installed), None)


def _assembled(folder: pathlib.Path) -> tuple[int | None, int | None]:
    """Registers of the greediest kernel and bytes spilled by all, or `None` without an assembler."""
    assembler, sources = ptxas(), sorted(folder.glob("*.ptx"))
    if assembler is None or not sources:
        return None, None
    registers, spills = [0], 0
    for source in sources:
        target = re.search(r"^\.target (\w+)", source.read_text(), re.MULTILINE)
        if target is None:  # A module of constants only is an empty file.
            continue
        command = [assembler, f"-arch={target.group(1)}", "-v", str(source), "-o", os.devnull]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers += map(int, re.findall(r"Used (\d+) registers", told))
        spills += sum(map(int, re.findall(r"(\d+) bytes spill stores", told)))
    return max(registers), spills
