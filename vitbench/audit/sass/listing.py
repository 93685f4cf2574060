"""Reads the text that `nvdisasm -c -hex` prints: instructions, operands, labels, and what they tell the scheduler."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^([.$A-Za-z_][\w.$]*):\s*$")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_GUARD = re.compile(r"^@(!?)(U?P[0-9T]+)\s+")
_PREDICATE = re.compile(r"^!?U?P(?:\d+|T)$")
_REGISTER = re.compile(r"^[-~!|+]*(U?R(?:\d+|Z))\b")


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler with an instruction, since Volta in bits 41 to 57 of its second word.

    `stall`: cycles until the warp's next instruction. `write_barrier` and `read_barrier`: which of six counters it
    holds until its result is there, until its sources are read; None for none. `wait_mask`: counters that must be free
    before it issues.

    Source: Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", arXiv 1804.06826.
    """

    stall: int = 1
    yields: bool = False
    write_barrier: int | None = None
    read_barrier: int | None = None
    wait_mask: int = 0


def control_of(word: int) -> Control:
    """Decodes the second 64-bit word of an instruction."""
    write, read = word >> 46 & 7, word >> 49 & 7
    return Control(
        stall=word >> 41 & 15,
        yields=not word >> 45 & 1,
        write_barrier=None if write == 7 else write,
        read_barrier=None if read == 7 else read,
        wait_mask=word >> 52 & 63,
    )


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    `guard` is the predicate in front of it ("P0", "!UP1") or "" when it always runs. `opcode` keeps its modifiers
    ("LDG.E.128"); `name` is the part before the first dot. `operands` are split at top-level commas. `control` is the
    default where the disassembly has no words.
    """

    index: int
    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    control: Control = Control()

    @cached_property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @cached_property
    def width_bytes(self) -> int:
        """Bytes one thread moves in this load or store (4 unless a modifier says otherwise)."""
        for modifier in self.modifiers:
            if modifier in _WIDTHS:
                return _WIDTHS[modifier]
        return 4


_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "32": 4, "64": 8, "128": 16, "256": 32, "ENL2": 32}


@dataclass(frozen=True)
class Listing:
    """The instructions of one kernel and where each label points (an index into `instructions`)."""

    kernel: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def at(self, address: int) -> int | None:
        """Index of the instruction at a byte address, or None."""
        index = address // 16
        if 0 <= index < len(self.instructions) and self.instructions[index].address == address:
            return index
        return None


def is_predicate(operand: str) -> bool:
    return bool(_PREDICATE.match(operand))


def register_of(operand: str) -> str | None:
    """The register an operand names ("R4" of "-R4.reuse"), or None for constants, addresses and predicates."""
    match = _REGISTER.match(operand)
    return match.group(1) if match else None


def split_operands(text: str) -> tuple[str, ...]:
    """Split at commas outside brackets and drop `.reuse` hints."""
    parts: list[str] = []
    depth, start = 0, 0
    for i, char in enumerate(text):
        if char in "[(":
            depth += 1
        elif char in "])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return tuple(part.strip().replace(".reuse", "") for part in parts if part.strip())


def parse(text: str) -> Listing:
    """The first kernel (`.text` section) in a disassembly.

    Raises: ValueError when the text holds no instruction.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    kernel = ""
    for line in text.splitlines():
        if section := _SECTION.match(line):
            if kernel and instructions:
                break
            kernel = section.group(1)
            continue
        if found := _LINE.match(line):
            instructions.append(_instruction(len(instructions), int(found.group(1), 16), found.group(2)))
        elif instructions and (word := _WORD.match(line)):
            instructions[-1] = replace(instructions[-1], control=control_of(int(word.group(1), 16)))
        elif label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
    if not instructions:
        raise ValueError("no instruction in the disassembly: expected the output of `nvdisasm -c` on a cubin")
    return Listing(kernel, tuple(instructions), labels)


def _instruction(index: int, address: int, text: str) -> Instruction:
    guard = ""
    body = text
    if found := _GUARD.match(text):
        guard = found.group(1) + found.group(2)
        body = text[found.end() :]
    opcode, _, rest = body.partition(" ")
    return Instruction(index, address, guard, opcode, split_operands(rest), text)
