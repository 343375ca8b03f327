"""The peers, each optional: a function that prepares one, or raises what says why it cannot run."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels.analysis.cases import Direction, program
from pallas_kernels.bench.compositions import Framework, NotApplicableError, composed
from pallas_kernels.bench.timing import Candidate

EPSILON = 1e-6
Args = dict[str, jax.ShapeDtypeStruct]


class Task(NamedTuple):
    """What is timed: a kernel on a named shape, its abstract arrays by name, and the pass."""

    kernel: str
    shape: Any
    args: Args
    direction: Direction


def jax_candidate(call: Callable, args: Args, direction: Direction, *, saves: bool) -> Candidate:
    """A JAX function as a candidate."""
    found = program(call, args, direction, saves=saves)
    compiled, arrays = jax.jit(found.function), jax.tree.map(_random, found.args)
    return Candidate(lambda: compiled(*arrays), jax.block_until_ready)


def _random(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.numpy.asarray(np.random.default_rng(0).normal(size=like.shape)).astype(like.dtype)


def flax(task: Task) -> Candidate:
    """Flax's layers with their defaults, computing in the dtype of the input."""
    return jax_candidate(composed(flax_layers(), task.kernel, task.shape), task.args, task.direction, saves=False)


def flax_layers() -> Framework:
    """Flax's layers as plain functions."""
    linen = importlib.import_module("flax.linen")

    def applied(layer: Callable, x, **parameters):
        given = {name: p for name, p in parameters.items() if p is not None}
        use = {f"use_{name}": name in given for name in parameters}
        return layer(epsilon=EPSILON, dtype=x.dtype, **use).apply({"params": given}, x)

    def group(x, scale, bias, groups):
        return applied(functools.partial(linen.GroupNorm, num_groups=groups), x, scale=scale, bias=bias)

    return Framework(
        lambda x, scale, bias: applied(linen.LayerNorm, x, scale=scale, bias=bias),
        lambda x, scale: applied(linen.RMSNorm, x, scale=scale),
        jax.nn.silu,
        group,
    )


def tokamax(task: Task) -> Candidate:
    """Tokamax with its own choice of implementation."""
    layer_norm = importlib.import_module("tokamax").layer_norm
    flags = importlib.import_module("absl.flags").FLAGS
    if not flags.is_parsed():
        flags(["bench"])  # It would take this command's arguments for its own.
    layer = lambda x, scale, bias: layer_norm(x, scale, bias, epsilon=EPSILON)  # noqa: E731
    rms = lambda x, scale: layer_norm(x, scale, None, epsilon=EPSILON, subtract_mean=False)  # noqa: E731
    call = composed(Framework(layer, rms, jax.nn.silu), task.kernel, task.shape)
    return jax_candidate(call, task.args, task.direction, saves=True)


def torch(task: Task) -> Candidate:
    """PyTorch's own functions, called one by one."""
    return _torch_candidate(composed(_torch(), task.kernel, task.shape), task)


def torch_compile(task: Task) -> Candidate:
    """The same, compiled for these shapes."""
    # What it compiled for other shapes counts towards a limit, beyond which it runs one by one without a word.
    importlib.import_module("torch._dynamo").reset()
    call = composed(_torch(), task.kernel, task.shape)
    return _torch_candidate(importlib.import_module("torch").compile(call, dynamic=False), task)


def _torch() -> Framework:
    functional = importlib.import_module("torch.nn.functional")

    def group(x, scale, bias, groups):
        # A view in torch's order of axes, in what it calls the channels-last memory format.
        return functional.group_norm(x.movedim(-1, 1), groups, scale, bias, EPSILON).movedim(1, -1)

    return Framework(
        lambda x, scale, bias: functional.layer_norm(x, x.shape[-1:], scale, bias, EPSILON),
        lambda x, scale: functional.rms_norm(x, x.shape[-1:], scale, EPSILON),
        functional.silu,
        group,
    )


def liger(task: Task) -> Candidate:
    """Liger's Triton kernels; not in place, which would overwrite the cotangent."""
    functional = importlib.import_module("liger_kernel.transformers.functional")
    calls = {
        "rms_norm": lambda x, w: functional.liger_rms_norm(x, w, EPSILON, in_place=False),
        "layer_norm": lambda x, w, b: functional.liger_layer_norm(x, w, b, EPSILON),
        "add_rms_norm": lambda x, r, w: functional.liger_fused_add_rms_norm(x, r, w, EPSILON, in_place=False)[::-1],
    }
    return _torch_candidate(_known(calls, task, "Liger"), task)


def quack(task: Task) -> Candidate:
    """QuACK's CuTe kernels."""
    rmsnorm = importlib.import_module("quack").rmsnorm
    calls = {
        "rms_norm": lambda x, w: rmsnorm(x, w, eps=EPSILON),
        "add_rms_norm": lambda x, r, w: rmsnorm(x, w, residual=r, eps=EPSILON, prenorm=True)[::-1],
    }
    return _torch_candidate(_known(calls, task, "QuACK"), task)


def _known(calls: dict[str, Callable], task: Task, peer: str) -> Callable:
    if task.kernel not in calls:
        raise NotApplicableError(f"{peer} has no {task.kernel}")
    return calls[task.kernel]


def _torch_candidate(call: Callable, task: Task) -> Candidate:
    """A torch function on the device that JAX uses; backward alone, from one forward pass."""
    torch = importlib.import_module("torch")
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise NotApplicableError("this torch sees no GPU")
    rng = np.random.default_rng(0)
    # torch wants parameters in the dtype of what is normalized, the first array.
    dtype = getattr(torch, next(iter(task.args.values())).dtype.name)

    def tensor(shape: tuple[int, ...]) -> Any:
        values = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        return values.to(device, dtype).requires_grad_(task.direction == "backward")

    tensors = {name: tensor(a.shape) for name, a in task.args.items()}
    wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None  # noqa: E731
    if task.direction == "forward":
        return Candidate(lambda: call(*tensors.values()), wait)
    outputs = call(*tensors.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # As `cases.program`: the gradients of two summands are one array.
    wanted = [t for name, t in tensors.items() if name != "residual" or "scale_in" in tensors]
    cotangents = [torch.randn_like(y) for y in outputs]
    return Candidate(lambda: torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True), wait)


PEERS: dict[str, Callable[[Task], Candidate]] = {
    "flax": flax,
    "tokamax": tokamax,
    "torch": torch,
    "torch.compile": torch_compile,
    "liger": liger,
    "quack": quack,
}
