"""`python -m pallas_kernels.analysis`: kernels on chips that need not be there, as a table and JSON."""

import argparse
import itertools
import os
import pathlib
import sys
import typing
from typing import Any

import jax

from pallas_kernels import _record
from pallas_kernels.analysis import cases, gpu, stack, tpu
from pallas_kernels.analysis.chips import CHIPS, Tpu
from pallas_kernels.analysis.core import analyse, available, traced_for


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if the compiler refused something, 0 otherwise, skipped chips included."""
    options = _parser().parse_args(arguments)
    # The programs are for other devices; a platform of this machine would only be initialized for nothing.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")
    rows: list[dict[str, Any]] = []
    for name in options.chip:
        if available(name):
            rows += _stack_rows(name, options) if options.stack else _rows(name, options)
        else:
            print(f"{name}: skipped, {tpu.MISSING if isinstance(CHIPS[name], Tpu) else gpu.MISSING}")
    if rows:
        print(_record.table(list(map(_text, rows if options.stack else _with_ratios(rows)))))
    if rows and options.json:
        _record.write(options.json, rows, chips={name: _about(name) for name in {row["chip"] for row in rows}})
    return int(any("error" in row for row in rows))


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
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows, with versions and commit")
    return parser


def _implementations(chip: str, options: argparse.Namespace) -> list[str]:
    return options.implementation or ["xla", "mosaic_tpu" if isinstance(CHIPS[chip], Tpu) else "triton"]


def _rows(chip: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    choices = itertools.product(options.kernel, options.direction, _implementations(chip, options))
    for kernel, direction, implementation in choices:
        for shape in cases.shapes(kernel) if direction in cases.directions(kernel) else ():
            if options.shape and shape not in options.shape:
                continue
            row = {"chip": chip, "kernel": kernel, "direction": direction, "shape": shape}
            row |= {"implementation": implementation}
            print(" ".join(row.values()), file=sys.stderr)
            rows.append(row | _measured(chip, kernel, direction, shape, implementation))
    return rows


def _measured(chip: str, *names) -> dict[str, Any]:
    try:
        with traced_for(chip):
            case = cases.case(*names)
        report = analyse(case.function, case.args, chip, ideal_bytes=case.ideal_bytes)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return {"error": " ".join(str(error).split())[:300]}
    return report.summary()


def _stack_rows(chip: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows, measured = [], {}
    for kernel, direction in itertools.product(filter(stack.fits, options.kernel), options.direction):
        for implementation in (*_implementations(chip, options), None):
            size = (options.tokens, options.width, options.hidden)
            row = {"chip": chip, "kernel": kernel, "direction": direction, "shape": "x".join(map(str, size))}
            row |= {"implementation": implementation or "automatic"}
            passes = stack.passes(kernel, implementation, direction, chip, *size, measured)
            # Minutes each: said at once, lest an end before the table lose them.
            print(*row.values(), f"{passes:.3f}", file=sys.stderr)
            rows.append({**row, "passes_per_layer": round(passes, 3)})
    return rows


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how much faster than XLA each is at least predicted to be."""
    key = lambda row: tuple(row[k] for k in ("chip", "kernel", "direction", "shape"))  # noqa: E731
    xla = {key(row): row["seconds"] for row in rows if row["implementation"] == "xla" and "seconds" in row}
    return [r | {"of_xla": xla[key(r)] / r["seconds"]} if "seconds" in r and key(r) in xla else r for r in rows]


def _text(row: dict[str, Any]) -> dict[str, str]:
    text = {k: str(row[k]) for k in ("chip", "kernel", "direction", "shape", "implementation")}
    if "passes_per_layer" in row:
        return text | {"HBM passes per layer": f"{row['passes_per_layer']:.2f}"}
    if "error" in row:
        columns = ("MiB", "/ ideal", "us >=", "xla /", "bound by", "VMEM MiB", "bundles", "registers", "spills")
        return text | dict.fromkeys(columns, "-") | {"bound by": "refused: " + row["error"][:80]}
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
