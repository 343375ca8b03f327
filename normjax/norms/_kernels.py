"""When a norm runs as one of the fused kernels of `pallas_kernels`."""

from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels._dispatch import Implementation as Implementation


def runs_kernel(implementation: Implementation | None, **refused: bool) -> bool:
    """Whether a kernel was named; `None` and `"xla"` are this library's own formula.

    Args:
      implementation: What the call asks for.
      **refused: Settings that no kernel has, and whether the call uses them.

    Raises:
      ValueError: If there is no such implementation.
      NotImplementedError: If a kernel was named and the call uses one of the settings.
    """
    if implementation in (None, "xla"):
        return False
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown; expected one of {IMPLEMENTATIONS} or None.")
    used = [name for name, is_used in refused.items() if is_used]
    if used:
        raise NotImplementedError(
            f"implementation={implementation!r} has no {', '.join(used)}: leave out what is not needed, or pass "
            "implementation=None."
        )
    return True
