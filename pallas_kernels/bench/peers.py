"""The peers, each optional: a function that prepares one, or raises what says why it cannot run."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pallas_kernels.analysis.cases import Direction, program
from pallas_kernels.bench.timing import Candidate

EPSILON = 1e-6
Args = dict[str, jax.ShapeDtypeStruct]


class NotApplicableError(Exception):
    """The peer has no such function."""


def jax_candidate(call: Callable, args: Args, direction: Direction, *, saves: bool) -> Candidate:
    """A JAX function as a candidate."""
    found = program(call, args, direction, saves=saves)
    compiled, arrays = jax.jit(found.function), jax.tree.map(_random, found.args)
    return Candidate(lambda: compiled(*arrays), jax.block_until_ready)


def _random(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.numpy.asarray(np.random.default_rng(0).normal(size=like.shape)).astype(like.dtype)


def flax(kernel: str, args: Args, direction: Direction) -> Candidate:
    """Flax's layer with its defaults, computing in x's dtype."""
    linen = importlib.import_module("flax.linen")
    names = ("scale", "bias") if "layer" in kernel else ("scale",)
    layer = (linen.LayerNorm if "layer" in kernel else linen.RMSNorm)(epsilon=EPSILON, dtype=args["x"].dtype)
    norm = lambda x, *parameters: layer.apply({"params": dict(zip(names, parameters, strict=True))}, x)  # noqa: E731
    return jax_candidate(_adding(norm, args), args, direction, saves=False)


def tokamax(kernel: str, args: Args, direction: Direction) -> Candidate:
    """Tokamax with its own choice of implementation."""
    layer_norm = importlib.import_module("tokamax").layer_norm
    flags = importlib.import_module("absl.flags").FLAGS
    if not flags.is_parsed():
        flags(["bench"])  # It would take this command's arguments for its own.

    def norm(x, scale, bias=None):
        return layer_norm(x, scale, bias, epsilon=EPSILON, subtract_mean="layer" in kernel)

    return jax_candidate(_adding(norm, args), args, direction, saves=True)


def _adding(norm: Callable, args: Args) -> Callable:
    """With the residual added first, by whatever the framework makes of it, if there is one."""
    if "residual" not in args:
        return norm

    def add_norm(x, residual, *parameters):
        total = x + residual
        return total, norm(total, *parameters)

    return add_norm


def torch(kernel: str, args: Args, direction: Direction) -> Candidate:
    """PyTorch's own functions, called one by one."""
    return _torch_candidate(_adding(_torch_norm(kernel), args), args, direction)


def torch_compile(kernel: str, args: Args, direction: Direction) -> Candidate:
    """The same, compiled for these shapes."""
    compiled = importlib.import_module("torch").compile(_adding(_torch_norm(kernel), args), dynamic=False)
    return _torch_candidate(compiled, args, direction)


def _torch_norm(kernel: str) -> Callable:
    functional = importlib.import_module("torch.nn.functional")
    name = "layer_norm" if "layer" in kernel else "rms_norm"
    return lambda x, *parameters: getattr(functional, name)(x, x.shape[-1:], *parameters, eps=EPSILON)


def liger(kernel: str, args: Args, direction: Direction) -> Candidate:
    """Liger's Triton kernels; not in place, which would overwrite the cotangent."""
    functional = importlib.import_module("liger_kernel.transformers.functional")
    calls = {
        "rms_norm": lambda x, w: functional.liger_rms_norm(x, w, EPSILON, in_place=False),
        "layer_norm": lambda x, w, b: functional.liger_layer_norm(x, w, b, EPSILON),
        "add_rms_norm": lambda x, r, w: functional.liger_fused_add_rms_norm(x, r, w, EPSILON, in_place=False)[::-1],
    }
    return _torch_candidate(_known(calls, kernel, "Liger"), args, direction)


def quack(kernel: str, args: Args, direction: Direction) -> Candidate:
    """QuACK's CuTe kernels."""
    rmsnorm = importlib.import_module("quack").rmsnorm
    calls = {
        "rms_norm": lambda x, w: rmsnorm(x, w, eps=EPSILON),
        "add_rms_norm": lambda x, r, w: rmsnorm(x, w, residual=r, eps=EPSILON, prenorm=True)[::-1],
    }
    return _torch_candidate(_known(calls, kernel, "QuACK"), args, direction)


def _known(calls: dict[str, Callable], kernel: str, peer: str) -> Callable:
    if kernel not in calls:
        raise NotApplicableError(f"{peer} has no {kernel}")
    return calls[kernel]


def _torch_candidate(call: Callable, args: Args, direction: Direction) -> Candidate:
    """A torch function on the device that JAX uses; backward alone, from one forward pass."""
    torch = importlib.import_module("torch")
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise NotApplicableError("this torch sees no GPU")
    rng = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...]) -> Any:
        values = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        # torch wants parameters in x's dtype.
        return values.to(device, getattr(torch, args["x"].dtype.name)).requires_grad_(direction == "backward")

    tensors = {name: tensor(a.shape) for name, a in args.items()}
    wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None  # noqa: E731
    if direction == "forward":
        return Candidate(lambda: call(*tensors.values()), wait)
    outputs = call(*tensors.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [t for name, t in tensors.items() if name != "residual"]
    cotangents = [torch.randn_like(y) for y in outputs]
    return Candidate(lambda: torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True), wait)


PEERS: dict[str, Callable[[str, Args, Direction], Candidate]] = {
    "flax": flax,
    "tokamax": tokamax,
    "torch": torch,
    "torch.compile": torch_compile,
    "liger": liger,
    "quack": quack,
}
