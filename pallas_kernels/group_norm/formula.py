r"""The mathematics of the group norms on one number per channel, once for XLA, TPU and GPU.

With $n$ elements in a group of a sample, $u = x - \mu$ and $r = (\epsilon + \tfrac1n\sum u^2)^{-1/2}$ the output is
$u r w + b$. Backward only two sums over space are needed, $P = \sum u\,\mathrm{d}y$ and $Q = \sum \mathrm{d}y$ of every
channel: with sums over the channels of a group

$$\mathrm{d}x = r\,\big(w\,\mathrm{d}y - \tfrac1n\sum w Q - u\,r^2\,\tfrac1n\sum w P\big),\qquad
  \mathrm{d}w = \sum_\text{batch} r P,\qquad \mathrm{d}b = \sum_\text{batch} Q.$$
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from pallas_kernels._axes import wide


@dataclasses.dataclass(frozen=True)
class GroupNorm:
    """Static settings of a group norm.

    Attributes:
      groups: Of the channels of a device.
      epsilon: Added to the variance.
      space_names: Mesh axes that split the space; XLA only.
      interpret: Whether kernels run in Pallas's interpreter; a TPU kernel takes `pltpu.InterpretParams` too.
    """

    groups: int
    epsilon: float
    space_names: tuple[str, ...] = ()
    interpret: object = False


class Coefficients(NamedTuple):
    """One number per channel each: dx = dy · cotangent − (x − mean) · centred − constant."""

    cotangent: jax.Array
    centred: jax.Array
    constant: jax.Array


def weight(rstd: jax.Array, scale: jax.Array | None) -> jax.Array:
    """What centred values are multiplied by."""
    return rstd if scale is None else rstd * wide(scale)


def coefficients(
    product: jax.Array,
    total: jax.Array,
    rstd: jax.Array,
    scale: jax.Array | None,
    group_mean: Callable[[jax.Array], jax.Array],
) -> Coefficients:
    """From the sums of u·dy and of dy over space; `group_mean` is the sum over a group's channels over n."""
    if scale is not None:
        product, total = product * wide(scale), total * wide(scale)
    slope = group_mean(product) * (rstd * rstd)
    return Coefficients(weight(rstd, scale), slope * rstd, group_mean(total) * rstd)


def input_gradient(dy: jax.Array, centred: jax.Array, by: Coefficients) -> jax.Array:
    """dx, elementwise."""
    return dy * by.cotangent - centred * by.centred - by.constant
