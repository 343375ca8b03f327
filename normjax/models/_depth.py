"""Blocks one after the other, or equal ones as one compiled loop over stacked parameters; either rematerialized."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax import nnx

# The name of the axis that stacked parameters have more.
_LAYERS = {nnx.PARTITION_NAME: "layers"}


def stacked(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """One module with the parameters of `count`, stacked along a first axis named `layers`."""

    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata=_LAYERS)
    def each(rngs):
        return make(rngs)

    return each(rngs.split(count))


def equal_blocks(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs, scan: bool) -> nnx.List:
    """`count` modules, or one that holds them stacked."""
    return nnx.List([stacked(make, count, rngs)] if scan else [make(rngs) for _ in range(count)])


def placed(carry: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """A stream, or a tree of them, where it should be; `None` leaves it to the compiler."""
    return carry if sharding is None else jax.lax.with_sharding_constraint(carry, sharding)


def carries(
    blocks: Sequence[Any],
    lengths: Sequence[int],
    carry: Any,
    options: dict[str, Any],
    *,
    every: bool = False,
    remat: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Any]:
    """The stream that enters the first block, and that after each.

    Args:
      blocks: Modules, called with a stream and the options.
      lengths: How many blocks each of them holds stacked; 0 for one that is no stack.
      carry: The stream.
      options: What every block is told.
      every: Whether streams between the blocks of a stack are asked for too.
      remat: Whether the backward pass computes each block again.
      sharding: Of every stream.
    """
    yield (carry := placed(carry, sharding))
    step = lambda block, carry, options: placed(block(carry, **options), sharding)  # noqa: E731
    step = nnx.remat(step) if remat else step
    for block, length in zip(blocks, lengths, strict=True):
        if length:
            carry, between = _scanned(step, every)(block, carry, options)
            yield from (jax.tree.map(lambda leaf, i=i: leaf[i], between) for i in range(length - 1) if every)
        else:
            carry = step(block, carry, options)
        yield carry


def _scanned(step: Callable[..., Any], every: bool) -> Callable[..., Any]:
    """A loop over stacked blocks; the streams between them are kept where they are asked for."""

    @nnx.scan(in_axes=(0, nnx.Carry, None), out_axes=(nnx.Carry, 0), transform_metadata=_LAYERS)
    def run(block, carry, options):
        carry = step(block, carry, options)
        return carry, carry if every else None

    return run
