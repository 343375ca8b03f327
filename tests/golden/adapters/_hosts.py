"""A recorded block against our module: outputs, states, and gradients under the recorded names."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.golden.adapters._compilation import quick_compilation
from tests.golden.adapters._kinds import Check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector, group

EPS32 = float(np.finfo(np.float32).eps)
# Blocks: a few matrix products, softmax and norms in a row, each of them within 80 eps.
BLOCK = 1e-4
Arrays = dict[str, Any]
_KERNELS = ("weight", "kernel")


def filled(build: Callable[[], nnx.Module], values: Arrays) -> Any:
    """The module that `build` makes, with these arrays for its variables, named "blocks.0.norm1.scale"."""
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    names = {".".join(map(str, path)): path for path in flat}
    assert set(names) == set(values), sorted(set(names) ^ set(values))
    for name, path in names.items():
        variable = flat[path]
        expected = variable.get_value().shape
        assert expected == values[name].shape, f"{name}: {values[name].shape} recorded, {expected} ours"
        flat[path] = variable.replace(values[name])
    return nnx.merge(graph, nnx.from_flat_state(flat))


def below(values: Arrays, prefix: str) -> Arrays:
    """The entries whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def linear(own: Arrays, ours: str, theirs: str) -> Arrays:
    """torch's linear layer or 1x1 convolution as the entries of ours."""
    weight = own[f"{theirs}.weight"]
    values = {f"{ours}.kernel": weight.reshape(weight.shape[:2]).T}
    return values | ({f"{ours}.bias": own[f"{theirs}.bias"]} if f"{theirs}.bias" in own else {})


_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def norm(own: Arrays, ours: str, theirs: str) -> Arrays:
    """torch's norm as the entries of ours."""
    found = {k: own.get(f"{theirs}.{v}") for k, v in _NORM.items()}
    return {f"{ours}.{k}": v.reshape(-1) for k, v in found.items() if v is not None}


def statistics(module: Any, ours: str, theirs: str) -> Arrays:
    """The running statistics of the norm at the path `ours`, under the recorded names of `theirs`."""
    layer = functools.reduce(
        lambda node, key: node[int(key)] if key.isdigit() else getattr(node, key), ours.split("."), module
    )
    return {f"{theirs}.{_NORM[name]}": getattr(layer, name)[...] for name in ("mean", "var")}


def channels_last(x: jax.Array) -> jax.Array:
    """(batch, channels, height, width) to (batch, height, width, channels)."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x: jax.Array) -> jax.Array:
    """The way back."""
    return jnp.moveaxis(x, -1, 1)


def check(make: Callable[[Vector], Callable[[Arrays, Arrays], Any]], tolerance: float | None = None) -> Callable:
    """An adapter of `make(vector)(inputs, params)`, which returns outputs, or outputs and states.

    Float64 vectors agree within 1e-12; others within `tolerance`, by default that of a block.
    """

    def adapter(vector: Vector) -> Check:
        def run(vector: Vector) -> None:
            wide = "float64" in vector.sidecar.get("compute", "")
            with jax.enable_x64(wide), quick_compilation():
                dtype, allowed = (jnp.float64, 1e-12) if wide else (jnp.float32, tolerance or BLOCK)
                run = _compiled(make(vector))
                for arrays in _steps(vector.arrays()):
                    _compare(arrays, run, dtype, allowed)

        return Check(run)

    return adapter


_RECORDED = {"x": "in/x", "gy": "cot/y", "y": "out/y", "gx": "gin/x"}


def _steps(arrays: Arrays) -> list[Arrays]:
    """The arrays; those of recorded training steps as one dict for each step, and one for the evaluation."""
    if "gy" not in arrays:
        return [arrays]

    def renamed(key: str) -> str | None:
        kind, _, rest = key.partition("_")
        return _RECORDED.get(key) or {"param": f"param/{rest}", "grad": f"gparam/{rest}"}.get(kind)

    names = {key: name for key in arrays if (name := renamed(key))}
    steps = [{name: arrays[key][t] for key, name in names.items()} for t in range(len(arrays["y"]))]
    evaluated = below({k: v for k, v in arrays.items() if k.startswith("eval_")}, "eval_")
    return [*steps, {name: evaluated[key] for key, name in names.items() if key in evaluated}]


def _compiled(call: Callable) -> Callable:
    """Outputs, states and gradients in one program for all steps: one by one, operations compile ten times as long."""

    @jax.jit
    def run(inputs, fixed, params, cotangents):
        def forward(inputs, params):
            made = call(inputs | fixed, params)
            return made if isinstance(made, tuple) else (made, {})

        outputs, pullback, states = jax.vjp(forward, inputs, params, has_aux=True)
        return outputs, states, pullback({k: cotangents.get(k, jnp.zeros_like(v)) for k, v in outputs.items()})

    return run


def _compare(arrays: Arrays, run: Callable, dtype, tolerance: float) -> None:
    prefix = ("f32",) if group(arrays, "f32") else ()
    floating = lambda tree: {k: v.astype(dtype) for k, v in tree.items() if not _integer(v)}
    inputs, params = floating(group(arrays, "in")), floating(group(arrays, "param"))
    fixed = {k: v.astype(np.int32) for k, v in group(arrays, "in").items() if _integer(v)}
    cotangents = floating(group(arrays, "cot") or group(arrays, "dy"))
    outputs, states, (gin, gparam) = run(inputs, fixed, params, cotangents)
    assert group(arrays, *prefix, "out"), "no recorded outputs"
    for kind, actual in (("out", outputs), ("gin", gin), ("state_after", states)):
        for name, value in group(arrays, *prefix, kind).items():
            if not _integer(value):
                assert_close(actual[name], value, tolerance, f"{kind} {name}")
    recorded = group(arrays, *prefix, "gparam")
    for name, value in recorded.items():
        largest = max(np.abs(recorded.get(re.sub("bias$", kernel, name), value)).max() for kernel in _KERNELS)
        if np.abs(value).max() < tolerance * largest / 10:
            # Zero but for rounding, in units of the gradient beside it: the bias of keys, or one before a batch norm.
            assert np.abs(gparam[name]).max() < tolerance * largest, f"gparam {name} is not zero"
        else:
            assert_close(gparam[name], value, tolerance, f"gparam {name}")


def _integer(value: np.ndarray) -> bool:
    return bool(np.issubdtype(value.dtype, np.integer))
