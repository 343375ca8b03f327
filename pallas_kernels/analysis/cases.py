"""The public kernels on the named shapes of their families, as functions that can be compiled alone."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.analysis.core import bytes_of

Direction = Literal["forward", "backward"]
# Array arguments of the public calls by their part: like x, one number per feature, or one per norm.
TENSORS = ("x", "residual", "gate", "weight", "update")
PARAMETERS = ("scale", "bias", "scale_out", "scale_in")
NORMS = ("radius",)


class Case(NamedTuple):
    """A function to compile, its abstract arguments, and what it should move at least."""

    function: Callable
    args: tuple
    ideal_bytes: int


def kernels() -> dict[str, Callable]:
    """The public calls that have implementations to choose from, by name."""
    functions = {n: f for n, f in vars(pallas_kernels).items() if inspect.isfunction(f)}
    return {n: f for n, f in functions.items() if "implementation" in inspect.signature(f).parameters}


def directions(kernel: str) -> tuple[Direction, ...]:
    """The passes a kernel has: an optimizer's step is not differentiated, nor is a rounding to a byte."""
    parameters = inspect.signature(_kernel(kernel)).parameters
    return ("forward",) if {"radius", "dtype"} & set(parameters) else ("forward", "backward")


def shapes(kernel: str) -> dict:
    """The named shapes of the kernel's family."""
    room = _kernel(kernel).__module__.rpartition(".")[0]
    return importlib.import_module(f"{room}.shapes").SHAPES


def case(kernel: str, direction: Direction, shape: str, implementation: str | None) -> Case:
    """The forward or the backward pass of a kernel alone, on a named shape."""
    call, args = call_on(kernel, _shape(kernel, shape), implementation)
    if direction not in directions(kernel):
        raise ValueError(f"{kernel} has no backward pass; analyse its forward pass.")
    return program(call, args, direction, saves=implementation != "xla")


def call_on(kernel: str, named, implementation: str | None) -> tuple[Callable, dict[str, jax.ShapeDtypeStruct]]:
    """A kernel as a function of the arrays it takes on a named shape, and those arrays by name."""
    function = _kernel(kernel)
    if hasattr(named, "arrays"):  # A family whose arrays are not all of x's shape says what they are.
        return named.call(function, implementation), named.arrays()
    args = arguments(kernel, named)
    return functools.partial(_call, function, tuple(args), implementation, _options(function, named)), args


def program(call: Callable, args: dict[str, jax.ShapeDtypeStruct], direction: Direction, *, saves: bool) -> Case:
    """The forward or the backward pass of a function of arrays.

    The ideal is the same for every implementation: the arguments once and the results once; backward the tensor that
    the norm saw, the parameters, the cotangents and the gradients.

    Args:
      call: Takes the arguments in their order.
      args: By name.
      direction: Which pass.
      saves: Whether the backward pass starts from what the forward pass saved, as a kernel's does. XLA's is compiled
        from x and the cotangents instead, the cheaper way for it: it recomputes in the same fusions what automatic
        differentiation would have saved in float32.
    """
    arrays = tuple(args.values())
    outputs = jax.eval_shape(call, *arrays)
    if direction == "forward":
        return Case(call, arrays, bytes_of((arrays, outputs)))
    # The gradients of two summands are one array: asking for one spares a copy that no training step makes. Those of a
    # norm's output and the stream it is added to are two, where the stream's own norm follows.
    fixed = {i: a for i, (name, a) in enumerate(args.items()) if name == "residual" and "scale_in" not in args}
    varied = tuple(a for i, a in enumerate(arrays) if i not in fixed)
    ideal = bytes_of((varied, outputs, varied))
    pullback = functools.partial(_pullback, call, tuple(fixed))
    if not saves:
        together = lambda dy, varied, *fixed: pullback(varied, *fixed)(dy)  # noqa: E731
        return Case(together, (outputs, varied, *fixed.values()), ideal)
    saved = jax.eval_shape(pullback, varied, *fixed.values())
    return Case(lambda saved, dy: saved(dy), (saved, outputs), ideal)


def _pullback(call: Callable, places: tuple[int, ...], varied: tuple, *fixed):
    def of(*varied):
        arrays = list(varied)
        for place, value in zip(places, fixed, strict=True):
            arrays.insert(place, value)
        return call(*arrays)

    return jax.vjp(of, *varied)[1]


def _options(function: Callable, named) -> dict:
    """What a named shape says beside the arrays' own shapes, as far as the call takes it."""
    taken = inspect.signature(function).parameters
    return {name: getattr(named, name) for name in ("axis", "num_groups") if name in taken}


def _call(function: Callable, names: tuple[str, ...], implementation: str | None, options: dict, *arrays):
    return function(**dict(zip(names, arrays, strict=True)), implementation=implementation, **options)


def arguments(kernel: str, named) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract arrays of a call on a named shape, by name; parameters are float32."""
    found = {}
    for name, parameter in inspect.signature(_kernel(kernel)).parameters.items():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD or (name == "bias" and "rms" in kernel):
            continue  # No model gives an RMS norm a bias.
        if name not in (*TENSORS, *PARAMETERS, *NORMS):
            raise ValueError(
                f"{kernel} has an array {name!r} of unknown part; name it in TENSORS, PARAMETERS or NORMS."
            )
        dtype = jnp.dtype(named.dtype) if name in TENSORS else jnp.float32
        found[name] = jax.ShapeDtypeStruct(_part(name, named), dtype)
    return found


def _part(name: str, named) -> tuple[int, ...]:
    if name in TENSORS:
        return named.shape
    axes = (named.axis,) if isinstance(named.axis, int) else named.axis or range(len(named.shape))
    if name in PARAMETERS:
        return tuple(named.shape[a] for a in axes)
    summed = {a % len(named.shape) for a in axes}
    return tuple(size for a, size in enumerate(named.shape) if a not in summed)


def _kernel(name: str) -> Callable:
    if name not in kernels():
        raise ValueError(f"kernel={name!r} is unknown; expected one of {', '.join(kernels())}.")
    return kernels()[name]


def _shape(kernel: str, name: str):
    if name not in shapes(kernel):
        raise ValueError(f"shape={name!r} is unknown to {kernel}; expected one of {', '.join(shapes(kernel))}.")
    return shapes(kernel)[name]
