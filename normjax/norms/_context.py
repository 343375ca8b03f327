"""What conditional norms read from the context, and what they say where it is missing or does not fit."""

from collections.abc import Mapping, Sequence
from typing import Any


def require(value: Any, method: str, name: str, expected: str) -> Any:
    """Returns the context argument `name`, or raises `ValueError` where a conditional norm was called without it."""
    if value is None:
        raise ValueError(f"{method} reads {name}= from its context and got none; pass {name}=, {expected}.")
    return value


def check_condition(name: str, value: Any, x_shape: Sequence[int], sizes: Mapping[int, int]) -> None:
    """Raises `ValueError` unless `value` has the rank of the input and the given sizes; the batch (axis 0) may be 1."""
    got, wanted = tuple(value.shape), dict(sizes)
    same_rank = len(got) == len(x_shape)
    if not same_rank or any(got[a] != size and (a, got[a]) != (0, 1) for a, size in wanted.items()):
        shown = ", ".join(str(wanted.get(a, "any")) + (" or 1" if a == 0 else "") for a in range(len(x_shape)))
        raise ValueError(f"{name}= of shape {got} does not fit an input of shape {tuple(x_shape)}: expected ({shown}).")
