r"""A gate on a row norm: a second tensor whose activation multiplies the rows, before they are normalized or after.

With $a = \phi(z)$ and the plain norm $f$ the output is $f(x a)$ or $f(x)\,a$. Either way statistics and gradient are
the plain norm's, of $v = x a$ and $\mathrm{d}y$, or of $v = x$ and $a\,\mathrm{d}y$. From its $\mathrm{d}v$ follow
$\mathrm{d}x = a\,\mathrm{d}v$ and $\mathrm{d}z = \phi'(z)\,x\,\mathrm{d}v$, or $\mathrm{d}x = \mathrm{d}v$ and
$\mathrm{d}z = \phi'(z)\,f(x)\,\mathrm{d}y$.
"""

import dataclasses
from typing import Literal

import jax

Activation = Literal["silu", "sigmoid", "none"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """Static settings of a gate.

    Attributes:
      activation: What is applied to the gate; "none" multiplies by the gate itself.
      first: Whether it multiplies before the norm.
    """

    activation: Activation
    first: bool


def _value_and_slope(gate: Gate, z: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The activation and its derivative, `None` for 1. Compilers share the sigmoid of equal calls."""
    if gate.activation == "none":
        return z, None
    s = jax.lax.logistic(z)
    if gate.activation == "sigmoid":
        return s, s * (1 - s)
    return z * s, s + z * s * (1 - s)


def before(gate: Gate | None, x: jax.Array, z: jax.Array | None) -> jax.Array:
    """What is normalized."""
    return x if gate is None or z is None or not gate.first else x * _value_and_slope(gate, z)[0]


def after(gate: Gate | None, y: jax.Array, z: jax.Array | None) -> jax.Array:
    """What becomes of the norm's output; and of the output's cotangent on its way back."""
    return y if gate is None or z is None or gate.first else y * _value_and_slope(gate, z)[0]


def gradients(
    gate: Gate, x: jax.Array, z: jax.Array, y: jax.Array, dy: jax.Array, dv: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`(dx, dz)`, elementwise; `y` is the plain norm's output and `dv` its gradient."""
    a, slope = _value_and_slope(gate, z)
    dx, da = (dv * a, dv * x) if gate.first else (dv, dy * y)
    return dx, da if slope is None else da * slope
