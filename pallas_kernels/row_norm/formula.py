r"""The mathematics of the row norms, once for XLA, TPU and GPU, which differ only in how they sum over a row.

With $u = x - \mu$ (layer), $x$ (rms, crms) the output is $u r \cdot w + b$, where $w$ is scale plus offset and

$$r^{-2} = \epsilon + \tfrac1n \sum u^2 \quad\text{or, for crms,}\quad
  \epsilon + \tfrac1{n+1}\Big(\sum x^2 + \big(\sum x\big)^2\Big).$$

With $g = w\,\mathrm{d}y$ the gradient is $\mathrm{d}x = r\,(g - \tfrac1n\sum g - u\, r^2\,\tfrac1n\sum g u)$ for layer;
rms has no second term; crms has $n + 1$ for $n$ and $x + \sum x$ for the last $u$. `shift` is $\mu$ for layer, $\sum x$
for crms and `None` for rms.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax

from pallas_kernels._axes import wide
from pallas_kernels.row_norm.gate import Gate

Kind = Literal["layer", "rms", "crms"]
# Sums the terms of a function of the row's tensors over the row; each sum keeps its axis.
Sums = Callable[[Callable[..., tuple[jax.Array, ...]]], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class RowNorm:
    """Static settings of a row norm.

    Attributes:
      kind: Which norm.
      axes: Sorted adjacent axes that form a row.
      epsilon: Under the root.
      scale_offset: Added to the scale; 1 for a scale that is stored around zero.
      residual: Whether a second input is added first, and the sum is a second output.
      gate: How a second input multiplies; a gated norm has no bias.
      samples: Whether scale and bias are (samples, features), x being (samples, ..., features).
      heads: Whether rows are those of heads, which a TPU keeps side by side.
      feature_names: Mesh axes that split the rows themselves; XLA only.
      interpret: Whether kernels run in Pallas's interpreter; a TPU kernel takes `pltpu.InterpretParams` too.
    """

    kind: Kind
    axes: tuple[int, ...]
    epsilon: float
    scale_offset: float = 0.0
    residual: bool = False
    gate: Gate | None = None
    samples: bool = False
    heads: bool = False
    feature_names: tuple[str, ...] = ()
    interpret: object = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inputs of x's shape."""
        return ("x", *(["residual"] if self.residual else []), *(["gate"] if self.gate else []))

    @property
    def held(self) -> int:
        """How many times the values of the plain norm a kernel holds: what does not fit registers fills VMEM."""
        return 2 if self.gate else 1

    @property
    def name(self) -> str:
        """What kernels are called in a program."""
        return f"{'gated_' if self.gate else ''}{self.kind}_norm"


def statistics(kind: Kind, n: int, epsilon: float, sums: Sums) -> tuple[jax.Array | None, jax.Array]:
    """`(shift, rstd)` of rows of `n` features. The variance takes a second sweep: E[x²] − E[x]² would cancel."""
    if kind == "layer":
        (total,) = sums(lambda x: (x,))
        mean = total * (1 / n)
        (square,) = sums(lambda x: ((x - mean) * (x - mean),))
        return mean, jax.lax.rsqrt(square * (1 / n) + epsilon)
    if kind == "rms":
        (square,) = sums(lambda x: (x * x,))
        return None, jax.lax.rsqrt(square * (1 / n) + epsilon)
    square, total = sums(lambda x: (x * x, x))
    return total, jax.lax.rsqrt((square + total * total) * (1 / (n + 1)) + epsilon)


def centred(kind: Kind, x: jax.Array, shift: jax.Array | None) -> jax.Array:
    """What is multiplied by rstd."""
    return x - shift if kind == "layer" and shift is not None else x


def output(u: jax.Array, rstd: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """The affine map of the normalized values."""
    y = u * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def projections(
    kind: Kind, n: int, shift: jax.Array | None, rstd: jax.Array, sums: Sums
) -> tuple[jax.Array | None, jax.Array]:
    """`(mean, slope)`, with which `input_gradient` is elementwise. `sums` is over functions of `(x, g)`."""
    if kind == "layer":
        product, total = sums(lambda x, g: ((x - shift) * g, g))
        return total * (1 / n), product * (rstd * rstd * (1 / n))
    (product,) = sums(lambda x, g: (x * g,))
    return None, product * (rstd * rstd * (1 / (n if kind == "rms" else n + 1)))


def input_gradient(
    kind: Kind,
    x: jax.Array,
    g: jax.Array,
    shift: jax.Array | None,
    rstd: jax.Array,
    mean: jax.Array | None,
    slope: jax.Array,
) -> jax.Array:
    """dx, elementwise."""
    direction = x + shift if kind == "crms" and shift is not None else centred(kind, x, shift)
    d = g - direction * slope
    return (d if mean is None else d - mean) * rstd


def weight(scale: jax.Array | None, offset: float) -> jax.Array | None:
    """What the normalized values are multiplied by, in float32 (float64 for a float64 scale)."""
    if scale is None:
        return None
    return wide(scale) + offset if offset else wide(scale)
