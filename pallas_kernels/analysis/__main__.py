"""`python -m pallas_kernels.analysis`: kernels on chips that need not be there, as a table and JSON."""

import argparse
import functools
import itertools
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pallas_kernels import _record
from pallas_kernels.analysis import cases, gpu, stack, tpu
from pallas_kernels.analysis.chips import CHIPS, Tpu
from pallas_kernels.analysis.core import analyse, available, traced_for

# What a row is about; the rest of it is what was found.
NAMES = ("chip", "kernel", "direction", "shape", "implementation")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if a compiler failed, 0 otherwise: skipped chips and what a kernel refuses included."""
    options = _parser().parse_args(arguments)
    # The programs are for other devices; a platform of this machine would only be initialized for nothing.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")
    rows: list[dict[str, Any]] = []
    for name in options.chip:
        if available(name):
            rows += _recorded(name, options)
        else:
            print(f"{name}: skipped, {tpu.MISSING if isinstance(CHIPS[name], Tpu) else gpu.MISSING}")
    if rows:
        print(_record.table(list(map(_text, rows if options.stack else _with_ratios(rows)))))
    return int(any("error" in row for row in rows))


def _recorded(chip: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a chip, each written as soon as it is found: an end before the last loses nothing."""
    path, rows, commit = options.json, [], _record.commit(options.json)
    known: set[tuple] = set()
    if path:
        # Another compiler's file is refused before minutes of compiling, not after.
        _record.merge(path, NAMES, [], chips={chip: _about(chip)})
        known |= {tuple(row[n] for n in NAMES) for row in _record.read(path)["rows"]} if options.missing else set()
    for names, find in (_stack if options.stack else _alone)(chip, options):
        if names in known:
            continue
        print(*names, file=sys.stderr)
        rows.append(dict(zip(NAMES, names, strict=True)) | find())
        if path:
            _record.merge(path, NAMES, [{**rows[-1], "commit": commit}])
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m pallas_kernels.analysis", description=__doc__)
    directions = typing.get_args(cases.Direction)
    named = list(dict.fromkeys(shape for kernel in cases.kernels() for shape in cases.shapes(kernel)))
    parser.add_argument("--kernel", nargs="+", choices=cases.kernels(), default=list(cases.kernels()))
    parser.add_argument("--direction", nargs="+", choices=directions, default=directions)
    parser.add_argument("--shape", nargs="+", choices=named, help="default: all of the kernel's family")
    parser.add_argument("--implementation", nargs="+", help="default: xla and the chip's kernel")
    parser.add_argument("--chip", nargs="+", choices=CHIPS, default=["v5e", "v5p", "v6e", "tpu7x", "h100"])
    parser.add_argument("--stack", action="store_true", help="per layer of a residual stack of matrix products")
    parser.add_argument("--tokens", type=int, default=8192, help="rows of the stack's stream")
    parser.add_argument("--width", type=int, default=4096, help="features of the stack's stream")
    parser.add_argument("--hidden", type=int, default=16384, help="features between the stack's products")
    parser.add_argument("--json", type=pathlib.Path, help="file that takes the rows, in place of those it has of them")
    parser.add_argument("--missing", action="store_true", help="only rows that the file lacks")
    return parser


def _implementations(chip: str, options: argparse.Namespace) -> list[str]:
    return options.implementation or ["xla", "mosaic_tpu" if isinstance(CHIPS[chip], Tpu) else "triton"]


def _alone(chip: str, options: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]]:
    """The names of rows, and what finds the rest of each."""
    for kernel, direction, implementation in itertools.product(
        options.kernel, options.direction, _implementations(chip, options)
    ):
        for shape in cases.shapes(kernel) if direction in cases.directions(kernel) else ():
            if not options.shape or shape in options.shape:
                names = (chip, kernel, direction, shape, implementation)
                yield names, functools.partial(_measured, chip, *names[1:])


def _measured(chip: str, *names) -> dict[str, Any]:
    try:
        with traced_for(chip):
            case = cases.case(*names)
        report = analyse(case.function, case.args, chip, ideal_bytes=case.ideal_bytes)
    except NotImplementedError as error:
        return {"refused": _line(error)}
    except jax.errors.JaxRuntimeError as error:
        return {"error": _line(error)}
    return report.summary()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _stack(chip: str, options: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]]:
    """As `_alone`, of stacks."""
    measured: dict[str, int] = {}
    size = (options.tokens, options.width, options.hidden)
    for kernel, direction in itertools.product(filter(stack.fits, options.kernel), options.direction):
        for implementation in (*_implementations(chip, options), None):
            names = (chip, kernel, direction, "x".join(map(str, size)), implementation or "automatic")
            find = functools.partial(stack.passes, kernel, implementation, direction, chip, *size, measured)
            yield names, lambda find=find: {"passes_per_layer": round(find(), 3)}


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how much faster than XLA each is at least predicted to be."""
    key = lambda row: tuple(row[k] for k in NAMES[:-1])  # noqa: E731
    xla = {key(row): row["seconds"] for row in rows if row["implementation"] == "xla" and "seconds" in row}
    return [r | {"of_xla": xla[key(r)] / r["seconds"]} if "seconds" in r and key(r) in xla else r for r in rows]


def _text(row: dict[str, Any]) -> dict[str, str]:
    text = {k: str(row[k]) for k in NAMES}
    if "passes_per_layer" in row:
        return text | {"HBM passes per layer": f"{row['passes_per_layer']:.2f}"}
    why = next((w for w in ("error", "refused") if w in row), None)
    if why:
        columns = ("MiB", "/ ideal", "us >=", "xla /", "bound by", "VMEM MiB", "bundles", "registers", "spills")
        return text | dict.fromkeys(columns, "-") | {"bound by": f"{why}: {row[why][:80]}"}
    return text | {
        "MiB": f"{row['hbm_bytes'] / 2**20:.1f}",
        "/ ideal": f"{row['hbm_bytes'] / row['ideal_bytes']:.3f}",
        "us >=": f"{row['seconds'] * 1e6:.1f}",
        "xla /": f"{row['of_xla']:.2f}" if "of_xla" in row else "-",
        "bound by": row["binding"],
        "VMEM MiB": f"{row['vmem_bytes'] / 2**20:.1f}" if "vmem_bytes" in row else "-",
        "bundles": str(row.get("bundles", "-")),
        "registers": str(row.get("registers", "-")),
        "spills": str(row.get("spills", "-")),
    }


def _about(chip: str) -> dict[str, Any]:
    found = CHIPS[chip]
    if isinstance(found, Tpu):
        return {"topology": found.topology, "bytes_per_second": found.bandwidth, "bundles_per_second": found.clock}
    return {"device": found.kind, "bytes_per_second": found.bandwidth}


if __name__ == "__main__":
    sys.exit(main())
