"""How far a folded network's outputs are from those of the network it came from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.table

from normjax.optim._paths import boxed_leaves


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One output.

    Attributes:
      max_error: Greatest absolute difference.
      relative_error: Frobenius norm of the difference over that of the original output.
      top1_agreement: Share of positions whose greatest entry on the last axis is the same.
    """

    max_error: float
    relative_error: float
    top1_agreement: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """All outputs by path, and whether they are within the tolerance.

    Attributes:
      outputs: Comparisons by the path of the output; `"."` for a single one.
      tolerance: Greatest relative error that is accepted.
    """

    outputs: dict[str, Comparison]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every output's relative error is finite and within the tolerance."""
        return all(c.relative_error <= self.tolerance for c in self.outputs.values())

    def table(self) -> rich.table.Table:
        """The verification for a terminal."""
        title = f"verification: {'passed' if self.passed else 'FAILED'} (tolerance {self.tolerance:g})"
        table = rich.table.Table("output", "max error", "relative error", "top-1 agreement", title=title)
        for path, c in self.outputs.items():
            table.add_row(path, f"{c.max_error:.3g}", f"{c.relative_error:.3g}", f"{100 * c.top1_agreement:.2f} %")
        return table


def verify(
    original: Callable[..., Any], folded: Callable[..., Any], *batch: Any, tolerance: float = 1e-4
) -> Verification:
    """Runs two networks on the same batch.

    Args:
      original: A function of the batch: a model, or `functools.partial(module.apply, variables)`.
      folded: The same with the folded parameters.
      *batch: Its arguments.
      tolerance: Greatest relative error; 1e-4 is the promise for float32 models of up to 24 blocks, 3e-2 for bfloat16,
        1e-10 for float64.

    Returns:
      The verification.

    Raises:
      ValueError: If the outputs have different structures or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import fold
      >>> result = fold.verify(lambda x: x, lambda x: x * 1.001, jnp.ones((2, 3)))
      >>> result.passed, round(result.outputs["."].relative_error, 4)
      (False, 0.001)
    """
    before, after = (boxed_leaves(fn(*batch)) for fn in (original, folded))
    shapes = [{path: tuple(np.shape(leaf)) for path, leaf in tree.items()} for tree in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the outputs differ in structure or shape: {shapes[0]} before, {shapes[1]} folded.")
    return Verification({path: _compared(before[path], after[path]) for path in before}, tolerance)


def _compared(original: Any, folded: Any) -> Comparison:
    a, b = (np.asarray(jax.device_get(leaf)).astype(np.float64) for leaf in (original, folded))
    difference, size = np.abs(a - b), np.linalg.norm(a)
    error = float(np.linalg.norm(difference))
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    agreement = float(np.mean(a.argmax(-1) == b.argmax(-1))) if a.size else 1.0
    relative = error / float(size) if size else (0.0 if error == 0 else float("inf"))
    return Comparison(float(difference.max(initial=0.0)), relative, agreement)
