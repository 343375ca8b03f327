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
from pallas_kernels.row_norm.shapes import Shape

KERNELS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
SMALL = {"64x256_f32": Shape((64, 256), "float32")}
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
        rows = [row for kernel in options.kernel for row in _rows(kernel, options)]
    print(_record.table([{k: _text(v) for k, v in row.items()} for row in rows if "why" not in row]))
    for name, why in sorted({(row["name"], row["why"]) for row in rows if "why" in row}):
        print(f"{name}: {why}")
    if options.json:
        about = {"device": device.device_kind, "rounds": options.rounds, "small": options.small}
        _record.write(options.json, rows, packages=PACKAGES, **about)
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
    shapes = SMALL if options.small else cases.shapes(kernel)
    chosen = {n: s for n, s in shapes.items() if (n in options.shape if options.shape else s.axis == -1)}
    rows = []
    for name, shape in chosen.items():
        for direction in options.direction:
            print(kernel, name, direction, file=sys.stderr)
            rows += _compare(kernel, name, shape, direction, options)
    return rows


def _compare(
    kernel: str, name: str, shape: Shape, direction: cases.Direction, options: argparse.Namespace
) -> list[dict[str, Any]]:
    row = {"kernel": kernel, "shape": name, "direction": direction}
    args = cases.arguments(kernel, shape)
    copy = {"x": args["x"]}
    candidates = {"copy": peers.jax_candidate(jnp.negative, copy, "forward", saves=False)}
    missing = {}
    for name, prepare in (_ours(kernel, options.device) | peers.PEERS).items():
        try:
            candidates[name] = prepare(kernel, args, direction)
            candidates[name].wait(candidates[name].call())
        except Exception as error:  # A peer may fail in any way of its own: it is named and left out.
            candidates.pop(name, None)
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    seconds = timing.medians(candidates, options.rounds, options.milliseconds / 1e3)
    moved = _moved(kernel, args, direction)
    bandwidth = 2 * cases.bytes_of(copy) / seconds["copy"]
    found = []
    for name, median in seconds.items():
        rate = (2 * cases.bytes_of(copy) if name == "copy" else moved) / median
        figures = {"us": median * 1e6, "GB/s": rate / 1e9, "of copy": rate / bandwidth}
        found.append({**row, "name": name, **figures, "of xla": median / seconds["xla"] if "xla" in seconds else None})
    empty = dict.fromkeys(("us", "GB/s", "of copy", "of xla"))
    return found + [{**row, "name": name, **empty, "why": why} for name, why in missing.items()]


def _ours(kernel: str, device: str) -> dict[str, Any]:
    """XLA, the device's kernel, and what is chosen without a name."""
    kinds = {"gpu": ("xla", "triton"), "tpu": ("xla", "mosaic_tpu"), "cpu": ("xla",)}
    named = {kind: kind for kind in kinds[device]} | {"automatic": None}
    return {name: functools.partial(_our_candidate, implementation) for name, implementation in named.items()}


def _our_candidate(implementation: str | None, kernel: str, args: peers.Args, direction: cases.Direction):
    call = lambda *arrays: cases.kernels()[kernel](  # noqa: E731
        **dict(zip(args, arrays, strict=True)), epsilon=peers.EPSILON, implementation=implementation
    )
    kernel_runs = implementation not in ("xla", None) or (implementation is None and jax.default_backend() == "gpu")
    return peers.jax_candidate(call, args, direction, saves=kernel_runs)


def _moved(kernel: str, args: peers.Args, direction: cases.Direction) -> int:
    call = lambda *arrays: cases.kernels()[kernel](  # noqa: E731
        **dict(zip(args, arrays, strict=True)), implementation="xla"
    )
    return cases.program(call, args, direction, saves=False).ideal_bytes


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


if __name__ == "__main__":
    sys.exit(main())
