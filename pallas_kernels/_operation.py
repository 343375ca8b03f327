"""One derivative rule and one `shard_map` for all families: a family gives functions of local arrays and their roles.

The rule is around the `shard_map`, never inside: a transposed shard_map would all-reduce the whole cotangent of x over
every mesh axis that does not split it.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels._placement import PARAMETERS, Placement, Role


@dataclasses.dataclass(frozen=True)
class Operation:
    """What a family gives.

    Attributes:
      forward: `forward(settings, inputs, save) -> (outputs, saved)`, tuples of local arrays; `saved` is empty unless
        `save`.
      backward: `backward(settings, parameters, saved, cotangents) -> gradients` of the inputs, where `parameters` are
        the inputs in the roles "feature" and "sample" and their gradients are float32 sums over the local rows.
      settings: Static and hashable, handed to both.
      inputs, outputs, saved: The role of each array. Absent inputs are `None` and have a role too.
      placement: Where the arrays live, or `None` for one device.
    """

    forward: Callable[[Any, tuple, bool], tuple[tuple, tuple]]
    backward: Callable[[Any, tuple, tuple, tuple], tuple]
    settings: Hashable
    inputs: tuple[Role, ...]
    outputs: tuple[Role, ...]
    saved: tuple[Role, ...]
    placement: Placement | None = None


def _placed(operation: Operation, function: Callable, inputs: tuple, outputs: tuple) -> Callable:
    place = operation.placement
    if place is None:
        return function
    in_specs, out_specs = jax.tree.map(place.of, (inputs, outputs))
    # Kernels do not say over which mesh axes their results vary, so that cannot be checked.
    return jax.shard_map(function, mesh=place.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _parameters(operation: Operation, inputs: tuple) -> tuple:
    return tuple(i for i, role in zip(inputs, operation.inputs, strict=True) if role in PARAMETERS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable(operation: Operation, *inputs: jax.Array | None) -> tuple[jax.Array, ...]:
    """The outputs of the operation, with its own backward pass."""
    function = lambda *inputs: operation.forward(operation.settings, inputs, False)[0]  # noqa: E731
    return _placed(operation, function, operation.inputs, operation.outputs)(*inputs)


def _forward(operation: Operation, *inputs):
    function = lambda *inputs: operation.forward(operation.settings, inputs, True)  # noqa: E731
    outputs, saved = _placed(operation, function, operation.inputs, (operation.outputs, operation.saved))(*inputs)
    return outputs, (_parameters(operation, inputs), saved)


def _backward(operation: Operation, residuals, cotangents):
    def function(parameters, saved, cotangents):
        gradients = operation.backward(operation.settings, parameters, saved, cotangents)
        if operation.placement is None:
            return gradients
        for role in PARAMETERS:
            gradients = _summed_over_shards(gradients, operation.inputs, role, operation.placement.summed(role))
        return gradients

    parameters, saved = residuals
    roles = (_parameters(operation, operation.inputs), operation.saved, operation.outputs)
    gradients = _placed(operation, function, roles, operation.inputs)(parameters, saved, cotangents)
    dtypes = iter(None if p is None else p.dtype for p in parameters)
    return tuple(
        g if role not in PARAMETERS or (dtype := next(dtypes)) is None else g.astype(dtype)
        for g, role in zip(gradients, operation.inputs, strict=True)
    )


# Under remat the recomputed forward pass is the plain one, which writes no statistics that nobody reads.
differentiable.defvjp(_forward, _backward, optimize_remat=True)


def _summed_over_shards(gradients: tuple, roles: tuple, role: Role, names: tuple[str, ...]) -> tuple:
    """Gradients of all parameters in a role in one all-reduce."""
    present = [i for i, (g, r) in enumerate(zip(gradients, roles, strict=True)) if r == role and g is not None]
    if not present or not names:
        return gradients
    sums = jax.lax.psum(jnp.stack([gradients[i] for i in present]), names)
    summed = dict(zip(present, sums, strict=True))
    return tuple(summed.get(i, g) for i, g in enumerate(gradients))
