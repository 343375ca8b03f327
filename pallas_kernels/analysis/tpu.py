"""Compiles for a TPU with libtpu and no TPU, and reads what the compiler chose."""

import atexit
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile

import jax
from jax.experimental import topologies

from pallas_kernels.analysis import bundles, traffic
from pallas_kernels.analysis.chips import Tpu
from pallas_kernels.analysis.report import OpReport, Report

MISSING = 'libtpu is not installed, so nothing can be compiled for a TPU; pip install "normjax[tpu]".'


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


@functools.cache
def _dumps() -> pathlib.Path:
    """The folder libtpu dumps to. libtpu reads its flags once, when it is loaded: one folder for the process."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="libtpu-dumps-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=final_(bundles|hlo)",  # All passes are a hundred times as much.
    )
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([os.environ.get("LIBTPU_INIT_ARGS", ""), *flags]).strip()
    return folder


def devices(chip: Tpu) -> list:
    """The compile-only devices of the chip's topology."""
    if not available():
        raise ModuleNotFoundError(MISSING)
    _dumps()
    return slice_devices(chip.topology)


def slice_devices(topology: str) -> list:
    """The compile-only devices of a slice, of `v5e:4x4` say; alone, it leaves nothing for `read` to find."""
    if not available():
        raise ModuleNotFoundError(MISSING)
    # No metadata server (it would know the hosts), no lock against another compiling process, no warnings of a missing
    # TPU.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (alone | dict.fromkeys(("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL"), "3")).items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(topology, "tpu").devices)


def begin() -> None:
    """Forgets the dumps of earlier programs."""
    for path in _dumps().iterdir():
        path.unlink()


def read(compiled: jax.stages.Compiled, chip: Tpu, ideal_bytes: int, copies: dict[str, list[float]]) -> Report:
    """The report of the program that was compiled for `chip` after `begin`."""
    text = compiled.as_text() or ""
    found = [_op(op, chip) for op in traffic.ops(text, copies)]
    scheduled = [op.schedule for op in found if op.schedule]
    if not scheduled:
        raise RuntimeError(
            "libtpu wrote no schedule: it was loaded before this tool could set its flags. Analyse in a process that "
            "has not compiled for a TPU yet."
        )
    moved = sum(f.op.bytes for f in found)
    memory, core = moved / chip.bandwidth, sum(s.cycles for s in scheduled) / chip.clock
    # Operations run one after the other, asynchronous copies beside them.
    in_turn = sum(f.seconds for f in found if not f.op.overlaps)
    return Report(
        chip=chip.topology,
        hbm_bytes=moved,
        ideal_bytes=ideal_bytes,
        kernels=sum(f.op.bytes > 0 for f in found),
        seconds=max(memory, in_turn),
        memory_seconds=memory,
        core_seconds=core,
        binding="HBM" if memory >= core else _busiest(scheduled),
        ops=tuple(found),
        padding_bytes=traffic.padding(text),
        vmem_bytes=max(f.vmem_bytes or 0 for f in found),
        bundles=sum(s.bundles for s in scheduled),
        spills=sum(s.spills for s in scheduled),
    )


def _op(op: traffic.Op, chip: Tpu) -> OpReport:
    schedule = bundles.schedule(_dumps(), op.name)
    core = schedule.cycles / chip.clock if schedule else 0.0
    used = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', op.text)
    return OpReport(op, max(op.bytes / chip.bandwidth, core), schedule, int(used[0]) if used else None)


def _busiest(schedules: list[bundles.Schedule]) -> str:
    unit, share = max(schedules, key=lambda s: s.cycles).busiest
    return f"{unit} {share:.0%}"
