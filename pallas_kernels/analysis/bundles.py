"""Reads the schedule that libtpu dumps for an operation: VLIW bundles, loops, spills, and how full each unit is.

One line of `*-final_bundles.txt` is one bundle, which takes at least one cycle; `LB` opens a loop, a branch back on the
negation of its exit test closes it. `*-final_hlo-static-per-bundle-utilization.txt` has one row of used slots a bundle.
"""

import dataclasses
import math
import pathlib
import re

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|\d+)\s+([A-Z]{2})?\s*:\s*(?:>\s*)*\{?")
# Most steps that a software pipeline may run beyond its grid.
_STAGES = 4


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The static schedule of one operation on one core.

    Attributes:
      bundles: Their number in the program.
      cycles: Bundles times the trips of the loops around them. Both sides of a branch count, waits for memory do not.
      spills, fills: Vector registers stored to VMEM and loaded back for want of registers, in the program.
      occupancy: Share of each unit's slots that are used, over `cycles`.
    """

    bundles: int
    cycles: int
    spills: int
    fills: int
    occupancy: dict[str, float]

    @property
    def busiest(self) -> tuple[str, float]:
        """The fullest unit and its share; above about 0.9 fewer operations are the only way to fewer cycles."""
        return max(self.occupancy.items(), key=lambda item: item[1])


@dataclasses.dataclass
class _Bundle:
    opens_loop: bool
    text: str


def schedule(dumps: pathlib.Path, op: str) -> Schedule | None:
    """The schedule of the operation of that name in the folder of dumps; `None` where the compiler made no code."""
    files = sorted(p for p in dumps.iterdir() if re.fullmatch(rf"\d+-{re.escape(op)}-\d+-final_\S+\.txt", p.name))
    text = [p for p in files if p.name.endswith("-final_bundles.txt")]
    slots = [p for p in files if p.name.endswith("utilization.txt")]
    if not text or not slots:
        return None
    bundles = _bundles(text[-1].read_text(errors="replace"))
    weights = _trips(bundles)
    units, capacities, rows = _slots(slots[-1].read_text())
    cycles = sum(weights)
    used = {u: sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i, u in enumerate(units)}
    static = {u: sum(row[i] for row in rows) for i, u in enumerate(units)}
    occupancy = {
        u: used[u] / (cycles * capacity) for u, capacity in zip(units, capacities, strict=True) if ":" not in u
    }
    return Schedule(len(bundles), cycles, static["VSTORE:SPILL"], static["VLOAD:FILL"], occupancy)


def _bundles(text: str) -> list[_Bundle]:
    found: list[_Bundle] = []
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match:
            found.append(_Bundle(match.group(1) == "LB", line))
        elif found:
            found[-1].text += " " + line
    return found


def _trips(bundles: list[_Bundle]) -> list[int]:
    """How often each bundle runs."""
    weights = [1] * len(bundles)
    text = "\n".join(b.text for b in bundles)
    tests = _exit_tests(text)
    grids = {math.prod(map(int, found.split(","))) for found in re.findall(r"iteration_bounds: \(([\d, ]+)\)", text)}
    starts = []
    for end, bundle in enumerate(bundles):
        starts += [end] if bundle.opens_loop else []
        branch = re.search(r"sbr\.rel \(!%(p\w+)\)", bundle.text)
        if branch and branch.group(1) in tests and starts:
            start, trips = starts.pop(), tests[branch.group(1)]
            # A pipelined grid runs one or two steps more, in which only copies start or end.
            trips = next((g for g in grids if trips - _STAGES <= g <= trips), trips)
            weights[start : end + 1] = [w * trips for w in weights[start : end + 1]]
    return weights


def _exit_tests(text: str) -> dict[str, int]:
    """Predicates of back edges, which compare a counter with a constant, and the trips that end with them."""
    steps = {s: int(step) for s, step in re.findall(r"%(s\w+) = sadd\.s32 (\d+), ", text)}
    pattern = r"%(p\w+) = scmp\.ge\.s32\.totalorder %(s\w+), (?:(\d+)|%s\w+)( /\* loop exit test)?"
    found = {}
    for predicate, counter, limit, stated in re.findall(pattern, text):
        if counter in steps or stated:
            # A counter spilled to scalar memory has lost its step, nearly always one; a limit that only the device
            # knows counts once.
            found[predicate] = -(-int(limit) // steps.get(counter, 1)) if limit else 1
    return found


def _slots(text: str) -> tuple[list[str], list[int], list[list[int]]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==")]
    units = [unit.strip() for unit in lines[0].split(",")]
    rows = [[int(n) for n in line.split()] for line in lines[1:]]
    return units, rows[0], rows[1:]
