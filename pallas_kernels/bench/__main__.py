"""`python -m pallas_kernels.bench --device gpu`: kernels, XLA, peers and a copy, interleaved in one process."""

import argparse
import functools
import os
import pathlib
import sys
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import _record
from pallas_kernels.analysis import cases
from pallas_kernels.bench import peers, timing
from pallas_kernels.group_norm import shapes as maps
from pallas_kernels.modulated_norm.shapes import Samples
from pallas_kernels.projection import shapes as weights
from pallas_kernels.qk_norm.shapes import Heads
from pallas_kernels.row_norm import shapes as rows

KERNELS = tuple(cases.kernels())
# One tiny shape for the families of each kind of shape.
TINY = (
    rows.Shape((64, 256), "float32"),
    maps.Shape((2, 4, 8, 32), "float32", 4),
    Samples((4, 16, 64), "float32"),
    weights.Shape((64, 256), "float32", -1),
    Heads(16, 4, 2, 64, "float32"),
)
SMALL = {type(shape): shape for shape in TINY}
PACKAGES = ("flax", "tokamax", "torch", "triton", "liger-kernel", "quack-kernels")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if the device is not there."""
    options = _parser().parse_args(arguments)
    # The frameworks share the device's memory: none may take it all. Set before the first array.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        device = jax.devices(options.device)[0]
    except RuntimeError:
        print(f"no {options.device}: JAX {jax.__version__} finds none on this machine, so there is nothing to time.")
        return 1
    with jax.default_device(device):
        found = [row for kernel in options.kernel for row in _rows(kernel, options)]
    print(_record.table([{k: _text(v) for k, v in row.items()} for row in found if "why" not in row]))
    for name, why in sorted({(row["name"], row["why"]) for row in found if "why" in row}):
        print(f"{name}: {why}")
    if options.json:
        about = {"device": device.device_kind, "rounds": options.rounds, "small": options.small}
        _record.write(options.json, found, packages=PACKAGES, **about)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m pallas_kernels.bench", description=__doc__)
    directions = typing.get_args(cases.Direction)
    parser.add_argument("--device", choices=("gpu", "tpu", "cpu"), default="gpu")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--direction", nargs="+", choices=directions, default=directions)
    parser.add_argument("--shape", nargs="+", help="names of the kernel's family; default: those normalized last")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--milliseconds", type=float, default=10.0, help="of one candidate in one round")
    parser.add_argument("--small", action="store_true", help="one tiny shape: tries the machinery, measures nothing")
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows, with device, versions and commit")
    return parser


def _rows(kernel: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name, shape in _shapes(kernel, options).items():
        for direction in cases.directions(kernel):
            if direction not in options.direction:
                continue
            print(kernel, name, direction, file=sys.stderr)
            task = peers.Task(kernel, shape, cases.call_on(kernel, shape, "xla")[1], direction)
            found += [
                {"kernel": kernel, "shape": name, "direction": direction, **row} for row in _compare(task, options)
            ]
    return found


def _shapes(kernel: str, options: argparse.Namespace) -> dict[str, Any]:
    shapes = cases.shapes(kernel)
    if options.small:
        return {"small": SMALL[type(next(iter(shapes.values())))]}
    if options.shape:
        return {name: shape for name, shape in shapes.items() if name in options.shape}
    # The peers normalize rows.
    return {name: shape for name, shape in shapes.items() if not isinstance(shape, rows.Shape) or shape.axis == -1}


def _compare(task: peers.Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    copied = max(task.args.values(), key=cases.bytes_of)
    candidates = {"copy": peers.jax_candidate(jnp.negative, {"x": copied}, "forward", saves=False)}
    missing = {}
    for name, prepare in (_ours(options.device) | peers.PEERS).items():
        try:
            candidates[name] = prepare(task)
            candidates[name].wait(candidates[name].call())
        except Exception as error:  # A peer may fail in any way of its own: it is named and left out.
            candidates.pop(name, None)
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    seconds = timing.medians(candidates, options.rounds, options.milliseconds / 1e3)
    call, args = cases.call_on(task.kernel, task.shape, "xla")
    moved = cases.program(call, args, task.direction, saves=False).ideal_bytes
    bandwidth = 2 * cases.bytes_of(copied) / seconds["copy"]
    found = []
    for name, median in seconds.items():
        rate = bandwidth if name == "copy" else moved / median
        figures = {"us": median * 1e6, "GB/s": rate / 1e9, "of copy": rate / bandwidth}
        found.append({"name": name, **figures, "of xla": median / seconds["xla"] if "xla" in seconds else None})
    empty = dict.fromkeys(("us", "GB/s", "of copy", "of xla"))
    return found + [{"name": name, **empty, "why": why} for name, why in missing.items()]


def _ours(device: str) -> dict[str, Any]:
    """XLA, the device's kernel, and what is chosen without a name."""
    kinds = {"gpu": ("xla", "triton"), "tpu": ("xla", "mosaic_tpu"), "cpu": ("xla",)}
    named = {kind: kind for kind in kinds[device]} | {"automatic": None}
    return {name: functools.partial(_our_candidate, implementation) for name, implementation in named.items()}


def _our_candidate(implementation: str | None, task: peers.Task):
    call, args = cases.call_on(task.kernel, task.shape, implementation)
    kernel_runs = implementation not in ("xla", None) or (implementation is None and jax.default_backend() == "gpu")
    return peers.jax_candidate(call, args, task.direction, saves=kernel_runs)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


if __name__ == "__main__":
    sys.exit(main())
