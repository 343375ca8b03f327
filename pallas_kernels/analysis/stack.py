"""A norm where it stands in a model: between matrix products and a residual stream.

XLA computes the moments in the product before and normalizes in the product after, where a kernel is a barrier: what a
norm costs alone is not what it costs here. One layer alone would count copies at the program's ends; the difference
between three layers and two does not.
"""

import inspect
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.analysis.cases import PARAMETERS, Direction, kernels
from pallas_kernels.analysis.core import analyse, bytes_of


def fits(kernel: str) -> bool:
    """Whether a kernel takes what a stack has for it: a stream, alone or with what is added to it."""
    parameters = inspect.signature(kernels()[kernel]).parameters.values()
    arrays = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    return arrays <= {"x", "residual", *PARAMETERS}


def passes(
    kernel: str,
    implementation: str | None,
    direction: Direction,
    chip: str,
    rows: int,
    width: int,
    hidden: int,
    measured: dict[str, int],
) -> float:
    """HBM traffic of one more layer h + W2 relu(W1 norm(h)), in reads or writes of the bfloat16 (rows, width) stream.

    Args:
      kernel: A public norm; one with a `residual` adds what the layer before returned.
      implementation: As the kernel takes it.
      direction: "forward", or "backward" for a training step: loss and all gradients.
      chip: As in `analyse`.
      rows, width, hidden: Tokens, and features of the stream and between the two products.
      measured: HBM bytes of programs that were compiled for this chip before, which a program equal to one of them
        shares: what is chosen without a name is one of the named ones, and a compile takes a minute.
    """
    stream = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16)
    names = [n for n in inspect.signature(kernels()[kernel]).parameters if n in PARAMETERS]
    names = [n for n in names if not (n == "bias" and "rms" in kernel)]
    weights = {"up": (width, hidden), "down": (hidden, width)}
    layer = {n: jax.ShapeDtypeStruct((width,), jnp.float32) for n in names}
    layer |= {n: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for n, shape in weights.items()}
    model = _added if "residual" in inspect.signature(kernels()[kernel]).parameters else _plain
    model = _output if kernel == "norm_add" else model

    def forward(stream, layers):
        return model(kernels()[kernel], implementation, names, stream, layers)

    def loss(stream, layers):
        return jnp.mean(forward(stream, layers).astype(jnp.float32) ** 2)

    program = forward if direction == "forward" else jax.grad(loss, argnums=(0, 1))
    few, more = (_hbm_bytes(program, (stream, [layer] * n), chip, measured) for n in (2, 3))
    return (more - few) / bytes_of(stream)


def _hbm_bytes(program: Callable, args: tuple, chip: str, measured: dict[str, int]) -> int:
    text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(program)(*args)))
    if text not in measured:
        measured[text] = analyse(program, args, chip).hbm_bytes
    return measured[text]


def _plain(norm: Callable, implementation: str | None, names: list[str], h: jax.Array, layers: list) -> jax.Array:
    for layer in layers:
        h = h + _mlp(norm(h, **{n: layer[n] for n in names}, implementation=implementation), layer)
    return h


def _added(norm: Callable, implementation: str | None, names: list[str], h: jax.Array, layers: list) -> jax.Array:
    update = jnp.zeros_like(h)
    for layer in layers:
        h, y = norm(update, h, **{n: layer[n] for n in names}, implementation=implementation)
        update = _mlp(y, layer)
    return h + update


def _output(norm: Callable, implementation: str | None, names: list[str], h: jax.Array, layers: list) -> jax.Array:
    for layer in layers:
        h = norm(_mlp(h, layer), h, **{n: layer[n] for n in names}, implementation=implementation)
    return h


def _mlp(y: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.relu(y @ layer["up"]) @ layer["down"]
