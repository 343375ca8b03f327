"""What an analysis finds."""

import dataclasses
from typing import Any

from pallas_kernels.analysis.bundles import Schedule
from pallas_kernels.analysis.traffic import Op


@dataclasses.dataclass(frozen=True)
class OpReport:
    """One operation of the program.

    Attributes:
      op: The operation and its HBM bytes.
      seconds: At least what it takes, alone.
      schedule: Of its code, on a TPU.
      vmem_bytes: VMEM its blocks and temporaries take, on a TPU.
    """

    op: Op
    seconds: float
    schedule: Schedule | None = None
    vmem_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled program, measured without running it. Fields that a platform does not have are `None`.

    Attributes:
      chip: Topology or device.
      hbm_bytes: What its operations read and write outside VMEM; on a GPU outside registers and shared memory.
      ideal_bytes: Every input read and every output written once.
      padding_bytes: What inputs and outputs take in HBM beyond their numbers, on a TPU, which moves whole tiles.
      kernels: Operations that touch HBM.
      seconds: A lower bound of its time: no operation is faster than its bytes over the bandwidth nor, on a TPU, than
        its bundles over the clock. Latencies, bank conflicts and the ends of pipelines come on top.
      memory_seconds: HBM bytes over the bandwidth.
      core_seconds: Cycles over the clock, on a TPU.
      binding: What the bound comes from: "HBM", or the fullest unit of the longest operation and its share of slots.
      ops: The operations in the order they are scheduled.
      vmem_bytes: Largest VMEM of an operation.
      bundles: Static VLIW bundles of all operations.
      registers: Largest number per thread of a GPU kernel, where ptxas is at hand.
      spills: Vector registers spilled (TPU), or bytes of registers (GPU).
    """

    chip: str
    hbm_bytes: int
    ideal_bytes: int
    kernels: int
    seconds: float
    memory_seconds: float
    core_seconds: float | None
    binding: str
    ops: tuple[OpReport, ...]
    padding_bytes: int | None = None
    vmem_bytes: int | None = None
    bundles: int | None = None
    registers: int | None = None
    spills: int | None = None

    @property
    def ratio(self) -> float:
        """HBM bytes over the ideal."""
        return self.hbm_bytes / self.ideal_bytes

    def summary(self) -> dict[str, Any]:
        """All but the operations, with the units in the names, as it goes into JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("ops", "chip")}
        return {k: round(v, 9) if isinstance(v, float) else v for k, v in fields.items() if v is not None}
