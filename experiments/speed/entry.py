"""One line of the table: a norm, an input, and what it is compared with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import normjax as nj


@dataclasses.dataclass(frozen=True)
class Entry:
    """A norm at one shape.

    Attributes:
      name: The factory's name.
      norm: The transform.
      shape: Shape of the input.
      dtype: Dtype of the input.
      formula: `formula(params, state, x, **context) -> y`: the plainest correct one.
      context: What a conditional norm reads.
      flax: Flax's layer as `flax(params, state, x)`, or `None`.
      exact: Whether the formula's derivative is the norm's, so that both directions are compared.
    """

    name: str
    norm: nj.NormTransform
    shape: tuple[int, ...]
    dtype: Any
    formula: Callable[..., jax.Array]
    context: dict[str, Any] = dataclasses.field(default_factory=dict)
    flax: Callable[..., jax.Array] | None = None
    exact: bool = True
