"""One line of the table: a norm, an input, and what it is compared with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj


@dataclasses.dataclass(frozen=True)
class Entry:
    """A norm at one shape.

    Attributes:
      name: The factory's name.
      norm: The transform; a reparametrization of kernels has a kernel for its input.
      shape: Shape of the input.
      dtype: Dtype of the input.
      formula: `formula(params, state, x, **context) -> y`: the plainest correct one.
      context: What a conditional norm reads.
      flax: Flax's layer as `flax(params, state, x)`, or `None`.
      exact: Whether the formula's derivative is the norm's, so that both directions are compared.
      arrays: How many arrays of that shape the input is; several are a tuple.
    """

    name: str
    norm: nj.NormTransform | nj.WeightTransform
    shape: tuple[int, ...]
    dtype: Any
    formula: Callable[..., Any]
    context: dict[str, Any] = dataclasses.field(default_factory=dict)
    flax: Callable[..., jax.Array] | None = None
    exact: bool = True
    arrays: int = 1

    def ours(self, params: Any, state: Any, x: Any, **context: Any) -> Any:
        """The norm in training, as a function of what the formula is a function of."""
        return self.norm.apply(params, state, x, train=True, **context)[0]


def arguments(entry: Entry) -> tuple[Any, Any, Any, Any]:
    """Parameters, state, input and cotangent, drawn with a fixed seed.

    Args:
      entry: The line.

    Returns:
      `(params, state, x, cotangent)`. What starts constant is moved a little: a scale of 1 or a kernel of zeros would
      agree with a formula that has it in the wrong place.
    """
    rng = np.random.default_rng(0)

    def normal():
        drawn = [jnp.asarray(rng.standard_normal(entry.shape), entry.dtype) for _ in range(entry.arrays)]
        return drawn[0] if entry.arrays == 1 else tuple(drawn)

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or np.ptp(leaf) > 0:
            return leaf
        return jnp.asarray(np.asarray(leaf) + (0.1 * rng.random(leaf.shape)).astype(leaf.dtype))

    x, cotangent = normal(), normal()
    params, state = jax.tree.map(moved, entry.norm.init(jax.random.key(0), x, **entry.context))
    return params, state, x, cotangent
