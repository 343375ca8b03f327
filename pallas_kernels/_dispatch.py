"""Which implementation runs."""

import typing

import jax

Implementation = typing.Literal["xla", "mosaic_tpu", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = typing.get_args(Implementation)


def choose(implementation: Implementation | None, gpu: tuple[str, str]) -> tuple[str, str]:
    """The implementations of the forward and of the backward pass.

    A name is taken for both, whatever the platform: a program may be compiled ahead of time for another one, and a
    kernel that the platform cannot run is refused where it is lowered. `None` means XLA on CPUs, and on TPUs, where it
    fuses a norm into the matrix products beside it, which no kernel can; on GPUs it means what the family measured.

    Args:
      implementation: A name, or `None` for the choice by JAX's default backend at the time of tracing.
      gpu: What `None` means on a GPU.
    """
    if implementation is None:
        return gpu if jax.default_backend() in ("gpu", "cuda", "rocm") else ("xla", "xla")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown; expected one of {IMPLEMENTATIONS} or None.")
    return implementation, implementation
