"""The chips a program can be compiled for without having one, and what bounds it on each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One TPU device as JAX sees it; on v5p two cores that share the parallel part of a grid, elsewhere one.

    Attributes:
      topology: Name of the smallest topology that every supported libtpu accepts.
      bandwidth: HBM bytes per second of the device, as JAX's own table of TPUs states it.
      clock: Bundles per second. Inferred from the published peak: peak bfloat16 / (MXUs · size² · 2).
      vmem: VMEM bytes of a core.
    """

    topology: str
    bandwidth: float
    clock: float
    vmem: int


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA must know of a GPU to compile for it; sizes in bytes.

    Attributes:
      kind: The device's name for itself.
      capability: Compute capability.
      multiprocessors: Their number.
      lanes: float32 lanes of a multiprocessor.
      clock_ghz: Boost clock.
      bandwidth: HBM bytes per second.
      memory, l2: Of the device.
      shared, shared_per_block: Shared memory of a multiprocessor, and what one block may ask for.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    clock_ghz: float
    bandwidth: float
    memory: int
    l2: int
    shared: int
    shared_per_block: int

    @property
    def target(self) -> str:
        """The target configuration that XLA's compiler takes in place of a device."""
        major, minor = self.capability
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 << 10,
            "shared_memory_per_core": self.shared,
            "shared_memory_per_block_optin": self.shared_per_block,
            "threads_per_core_limit": 2048,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory,
            "registers_per_core_limit": 64 << 10,
            "registers_per_block_limit": 64 << 10,
        }
        lines = "\n".join(f"  {name}: {value}" for name, value in info.items())
        return (
            f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
            'platform_name: "CUDA"\n'
            "dnn_version_info { major: 9 minor: 12 }\n"
            "runtime_version { major: 13 minor: 0 patch: 0 }\n"
            f'device_description_str: "{self.kind}"\n'
        )


MIB = 1 << 20
_HOPPER = {
    "capability": (9, 0),
    "multiprocessors": 132,
    "lanes": 128,
    "clock_ghz": 1.98,
    "l2": 50 * MIB,
    "shared": 228 << 10,
    "shared_per_block": 227 << 10,
}
CHIPS: dict[str, Tpu | Gpu] = {
    "v4": Tpu("v4:2x2x1", 0.615e12, 1.05e9, 16 * MIB),
    "v5e": Tpu("v5e:2x2", 0.82e12, 1.5e9, 128 * MIB),
    "v5p": Tpu("v5p:2x2x1", 2.46e12, 1.75e9, 64 * MIB),
    "v6e": Tpu("v6e:2x2", 1.64e12, 1.75e9, 128 * MIB),
    "tpu7x": Tpu("tpu7x:2x2x1", 3.70e12, 2.2e9, 64 * MIB),
    "h100": Gpu("NVIDIA H100 80GB HBM3", bandwidth=3.352e12, memory=80 << 30, **_HOPPER),
    "h200": Gpu("NVIDIA H200", bandwidth=4.8e12, memory=141 << 30, **_HOPPER),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2.039e12, 80 << 30, 40 * MIB, 164 << 10, 163 << 10),
}


def chip(name: str) -> Tpu | Gpu:
    """The chip of that name, or a `ValueError` that lists them."""
    if name not in CHIPS:
        raise ValueError(f"chip={name!r} is unknown; expected one of {', '.join(CHIPS)}.")
    return CHIPS[name]
