"""What the battery needs to know of a norm in one setting."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import normjax as nj


def _no_context(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    del rng, shape
    return {}


@dataclasses.dataclass(frozen=True)
class Case:
    """One norm in one setting.

    Attributes:
      name: Shown as the test's id.
      factory: The exported factory it belongs to.
      norm: The transform.
      shape: Shape of an input.
      expected: `expected(params, x, mask, **context) -> y` in float64, for the first step of training.
      reduced: Axes over which statistics are taken, those of a group of features included; a mask empties a set by
        masking all of them. Empty for functions of single values.
      context: `context(rng, shape) -> dict`: what a conditional norm reads, for an input of that shape. Arrays whose
        first axis is the batch are sharded with it.
      channels_first: The same norm for inputs whose last axis was moved to position 1, where there is such a choice.
      exact_derivative: Whether the backward pass is the derivative; PowerNorm's and Unified Normalization's are not.
      padding_in_backward: Whether, as published, padded positions enter means of the backward pass.
      smooth: Whether second derivatives exist at almost every point that a finite difference visits.
      condition: How much larger than 32 roundings the error may be, with the reason beside it.
    """

    name: str
    factory: Callable[..., nj.NormTransform]
    norm: nj.NormTransform
    shape: tuple[int, ...]
    expected: Callable[..., np.ndarray]
    reduced: tuple[int, ...]
    context: Callable[[np.random.Generator, tuple[int, ...]], dict[str, Any]] = _no_context
    channels_first: nj.NormTransform | None = None
    exact_derivative: bool = True
    padding_in_backward: bool = False
    smooth: bool = True
    condition: float = 1.0

    @property
    def across_batch(self) -> bool:
        return 0 in self.reduced
