"""Counts the HBM bytes of a scheduled program: what every operation of its HLO reads and writes outside VMEM.

`cost_analysis()["bytes accessed"]` is no substitute: it counts VMEM and the insides of fusions too.
"""

import dataclasses
import math
import re

_BITS = {"pred": 8, "bf16": 16}
# These move nothing: names for parts of other results, or the end of what its start has begun.
_FREE = {
    *("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "partition-id", "iota"),
    *("optimization-barrier",),
}
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+(?:\d+)(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)")


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation of a program.

    Attributes:
      name: In the HLO, by which the compiler's dumps name it too.
      opcode: "fusion", "custom-call", "copy-done", ...
      read, written: HBM bytes, layout padding included. An operand is read whole and once.
      overlaps: Whether it runs beside other operations (asynchronous copies).
      text: What follows the opcode, with the configuration the compiler chose.
    """

    name: str
    opcode: str
    read: int
    written: int
    overlaps: bool
    text: str

    @property
    def bytes(self) -> int:
        """HBM bytes in both directions."""
        return self.read + self.written


@dataclasses.dataclass(frozen=True)
class _Buffer:
    bytes: int
    hbm: bool


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    operands: tuple[str, ...]
    buffers: tuple[_Buffer, ...]
    text: str


def ops(hlo: str, copies: dict[str, list[float]] | None = None) -> list[Op]:
    """The operations of the entry computation of a scheduled HLO text, called computations in their place.

    A loop's body counts as often as the compiler knows it to run, and once where it does not.

    Args:
      hlo: `compiled.as_text()`.
      copies: How often kernels copy each operand and result, as `fetches.copies` finds it; once where it is silent.
    """
    copies = copies or {}
    computations = _computations(hlo)
    entry = re.search(r"^ENTRY %([\w.\-]+)", hlo, re.MULTILINE)
    if entry is None:
        raise ValueError("the text has no ENTRY computation; pass compiled.as_text() of a compiled program.")
    return _ops(entry.group(1), computations, copies)


def padding(hlo: str) -> int:
    """Bytes that the program's arguments and results take beyond their numbers, in the layouts the compiler gave them.

    Whatever reads or writes such an array whole moves them too: 320 channels along 128 lanes are stored as 384.
    """
    layout = hlo.partition("entry_computation_layout={")[2]
    return sum(_buffer(array).bytes - _packed(array) for array in _ARRAY.findall(layout[: _closing(layout, "{}")]))


def _ops(name: str, computations: dict[str, list[_Instruction]], copies: dict[str, list[float]]) -> list[Op]:
    found, seen = [], {}
    for instruction in computations[name]:
        seen[instruction.name] = instruction
        inner = re.search(r"(?:body|to_apply)=%([\w.\-]+)", instruction.text)
        if instruction.opcode in ("while", "call") and inner:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
            found += _ops(inner.group(1), computations, copies) * (int(trips.group(1)) if trips else 1)
        elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-start"):
            found.append(_op(instruction, seen, copies))
    return found


def _op(instruction: _Instruction, seen: dict[str, _Instruction], copies: dict[str, list[float]]) -> Op:
    operands = [seen[name] for name in instruction.operands if name in seen]
    overlaps = instruction.opcode.endswith("-done")
    if overlaps and operands and operands[0].opcode.endswith("-start"):
        # The start's own tuple holds source and destination; the source says where the bytes come from.
        sources = [b for name in operands[0].operands if name in seen for b in seen[name].buffers]
        read = sum(b.bytes for b in instruction.buffers) if any(b.hbm for b in sources) else 0
        return _counted(instruction, read, sum(b.bytes for b in instruction.buffers if b.hbm), overlaps)
    inputs = [b for operand in operands for b in operand.buffers]
    times = copies.get(_kernel(instruction), [])
    if len(times) != len(inputs) + len(instruction.buffers):
        times = [1.0] * (len(inputs) + len(instruction.buffers))
    moved = [b.bytes * n if b.hbm else 0 for b, n in zip((*inputs, *instruction.buffers), times, strict=True)]
    return _counted(instruction, sum(moved[: len(inputs)]), sum(moved[len(inputs) :]), overlaps)


def _counted(instruction: _Instruction, read: float, written: float, overlaps: bool) -> Op:
    return Op(instruction.name, instruction.opcode, round(read), round(written), overlaps, instruction.text)


def _kernel(instruction: _Instruction) -> str:
    """The name a Pallas kernel was given, or an empty string. On GPUs it stands in the metadata only."""
    if instruction.opcode != "custom-call":
        return ""
    scope = re.search(r'op_name="[^"]*?([^"/]+)/pallas_call"', instruction.text)
    return scope.group(1) if scope else re.sub(r"\.\d+$", "", instruction.name)


def _computations(hlo: str) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            current = found.setdefault(header.group(1), [])
        elif instruction := _INSTRUCTION.match(line):
            current.append(_instruction(*instruction.groups()))
    return found


def _instruction(name: str, rest: str) -> _Instruction:
    kind, rest = _split_type(rest)
    opcode, _, rest = rest.strip().partition("(")
    end = _closing(rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return _Instruction(name, opcode, operands, tuple(map(_buffer, _ARRAY.findall(kind))), rest[end:])


def _split_type(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:]
    kind, _, rest = text.partition(" ")
    return kind, rest


def _closing(text: str, pair: str = "()") -> int:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == pair[0]) - (character == pair[1])
        if depth == 0:
            return i
    return len(text)


def _buffer(array: tuple[str, str, str]) -> _Buffer:
    dtype, dimensions, layout = array
    sizes = [int(d) for d in dimensions.split(",") if d]
    minor_first = re.match(r"\{([\d,]+)", layout)
    order = [int(d) for d in minor_first.group(1).split(",")] if minor_first else range(len(sizes))[::-1]
    sizes = [sizes[d] for d in order]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile:
        for i, size in enumerate(reversed([int(t) for t in tile.group(1).split(",")])):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // size) * size
    # S(1) is VMEM, S(2) and up are semaphores and scalar memory; without a number it is HBM.
    return _Buffer(math.prod(sizes) * _bits(dtype) // 8, re.search(r"S\([1-9]\)", layout) is None)


def _packed(array: tuple[str, str, str]) -> int:
    return math.prod(int(d) for d in array[1].split(",") if d) * _bits(array[0]) // 8


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
