"""The kinds of adapters: what a recorded vector is compared with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.golden.vectors import Vector


def _no_context(arrays: Mapping[str, np.ndarray], t: int | None) -> dict[str, Any]:
    del arrays, t
    return {}


def valid_mask(pad_mask: np.ndarray) -> np.ndarray:
    """A recorded (batch, length) mask of padding as a mask of valid positions with a feature axis."""
    return ~pad_mask[..., None]


@dataclasses.dataclass(frozen=True)
class Stepwise:
    """A transform driven over recorded training steps.

    Attributes:
      norm: The transform.
      params: Recorded names of parameters, and our paths ("scale", "1/scale").
      state: Recorded names of state entries, and our paths.
      written: Recorded names of entries that the backward pass writes, and our paths in the parameters.
      mask: What makes our mask of the recorded `pad_mask`.
      context: `context(arrays, t)` gives the context of step t, and of the evaluation for `None`.
      loss: `loss(new_state)` is added to the loss, as the recorded `extra_loss` was.
      slack: Times the usual tolerance, with a reason where it is used.
      beside: `beside(vector)` asserts what the correct rule gives, where the recorded one is a published defect.
    """

    norm: nj.NormTransform
    params: dict[str, str]
    state: dict[str, str]
    written: dict[str, str] = dataclasses.field(default_factory=dict)
    mask: Callable[[np.ndarray], np.ndarray] = valid_mask
    context: Callable[[Mapping[str, np.ndarray], int | None], dict[str, Any]] = _no_context
    loss: Callable[[Any], jax.Array] | None = None
    slack: float = 1.0
    beside: Callable[[Vector], None] | None = None


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """A function of inputs and parameters whose outputs and gradients were recorded for several dtypes.

    Attributes:
      call: `call(inputs, params, epsilon) -> y`.
      centred: Whether a mean is subtracted, which amplifies the rounding of the recorded mean.
      roundings: How often the recorded bfloat16 code rounds on its way to an output where it keeps its statistics in
        bfloat16; 0 where its outputs can be met bit by bit.
      narrow_params: Whether parameters are added to in their own dtype, of which the exact value is then one, too.
    """

    call: Callable[[dict[str, jax.Array], dict[str, jax.Array], float], jax.Array]
    centred: bool = False
    roundings: int = 0
    narrow_params: bool = False


@dataclasses.dataclass(frozen=True)
class Policies:
    """The same input and scale under several published dtype policies: `calls[name](x, scale, epsilon) -> y`."""

    calls: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]]


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison of its own, for vectors that none of the other kinds fits: `run(vector)` asserts."""

    run: Callable[[Vector], None]


def check(run: Callable[[Vector], None]) -> Callable[[Vector], Check]:
    """An adapter of vectors that are compared by `run`, whatever their sidecars say."""
    return lambda vector: Check(run)


Adapter = Stepwise | Pointwise | Policies | Check


def epsilon_of(vector: Vector, dtype: Any) -> float:
    """The recorded epsilon for inputs of `dtype`."""
    epsilon = vector.hyper.get("eps", 1e-5)
    if not isinstance(epsilon, str):
        return epsilon
    # torch's None is the machine epsilon of the dtype it computes in: float32 for bfloat16 inputs too.
    return float(jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32).eps)
