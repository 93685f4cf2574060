"""The state of one thread and how operands read it: registers are unsigned Python ints, None when unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vitbench.audit.sass.integers import MASK, Value, Word
from vitbench.audit.sass.listing import Instruction, is_predicate, register_of

_CONSTANT = re.compile(r"^([-~]?)c\[0x0\]\[0x([0-9a-f]+)\]$")
_HEX = re.compile(r"^-?0x[0-9a-f]+$")


@dataclass
class Thread:
    """Registers, predicates and stack slots by name; constant bank 0 by word offset; special registers; known memory.

    `active[i]` counts how often the guard of instruction i held, or could not be known; `skipped` lists those whose
    guard did not hold since somebody emptied it.
    """

    constants: Mapping[int, Value]
    special: Mapping[str, int]
    memory: Mapping[int, bytes] = field(default_factory=dict)
    values: dict[str, Word] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def word(self, offset: int) -> Value:
        value = self.constants.get(offset & ~3)
        return None if value is None else value >> 8 * (offset & 3) & MASK

    def loaded(self, address: Value, size: int) -> bytes | None:
        """What lies at an address, None where nobody said."""
        if address is None:
            return None
        for start, found in self.memory.items():
            if start <= address <= start + len(found) - size:
                return found[address - start : address - start + size]
        return None

    def known(self, name: str) -> Value:
        """A register or predicate, None unless all of it is known."""
        word = self.values.get(name)
        return word if isinstance(word, int) else None


Getter = Callable[[Thread], Value]
Step = Callable[[Thread], None]


def getter(operand: str, bits: int = 32, carrying: bool = False) -> Getter:
    """Reads a source operand; 64-bit reads take a register or constant pair.

    `carrying` leaves -0 as 2**bits, for adders: subtracting zero carries out.
    """
    mask = (1 << bits) - 1
    if is_predicate(operand):
        name, invert = operand.lstrip("!"), operand.startswith("!")
        if name in ("PT", "UPT"):
            return lambda t: 0 if invert else 1

        def predicate(t: Thread) -> Value:
            word = t.values.get(name)
            return (word ^ 1 if invert else word) if isinstance(word, int) else None

        return predicate
    if _HEX.match(operand):
        number = int(operand, 16) & mask
        return lambda t: number
    if found := _CONSTANT.match(operand):
        offset, sign = int(found.group(2), 16), found.group(1)

        def constant(t: Thread) -> Value:
            value = t.word(offset)
            if bits == 64 and value is not None:
                high = t.word(offset + 4)
                value = None if high is None else high << 32 | value
            return _signed_form(value, sign, mask, carrying)

        return constant
    register = register_of(operand)
    if register is None:
        return lambda t: None
    sign = operand[0] if operand[0] in "-~" else ""
    if register in ("RZ", "URZ"):
        zero = mask if sign == "~" else mask + 1 if sign == "-" and carrying else 0
        return lambda t: zero
    if operand.lstrip("-~").removeprefix(register) not in ("", ".64"):
        return lambda t: None
    if bits == 32 and not sign:

        def plain(t: Thread) -> Value:
            word = t.values.get(register)
            return word if isinstance(word, int) else None

        return plain
    stem = register.rstrip("0123456789")
    high_name = f"{stem}{int(register[len(stem) :]) + 1}"

    def read(t: Thread) -> Value:
        value = t.known(register)
        if bits == 64 and value is not None:
            high = t.known(high_name)
            value = None if high is None else high << 32 | value
        return _signed_form(value, sign, mask, carrying)

    return read


def word_getter(operand: str) -> Callable[[Thread], Word]:
    """Like `getter` for one word, but a plain register gives what is known of it."""
    register = register_of(operand)
    if register is None or operand != register or register in ("RZ", "URZ"):
        return getter(operand)
    name = register
    return lambda t: t.values.get(name)


def _signed_form(value: Value, sign: str, mask: int, carrying: bool) -> Value:
    if value is None or not sign:
        return value
    if sign == "~":
        return ~value & mask
    return (~value & mask) + 1 if carrying else -value & mask


@dataclass(frozen=True)
class Shape:
    """Operands of an arithmetic instruction: results first, then sources, then predicates that are sources."""

    register: str
    carries: list[str]
    sources: list[str]
    predicates: list[str]


def shape(instruction: Instruction) -> Shape:
    operands = list(instruction.operands)
    front: list[str] = []
    while operands and is_predicate(operands[0]):
        front.append(operands.pop(0))
    register = register_of(operands.pop(0)) or "RZ"
    while operands and is_predicate(operands[0]):
        front.append(operands.pop(0))
    back: list[str] = []
    while operands and is_predicate(operands[-1]):
        back.insert(0, operands.pop())
    return Shape(register, front, operands, back)
