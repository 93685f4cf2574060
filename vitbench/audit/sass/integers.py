"""What the integer, predicate and address instructions compute, on 32-bit values held as unsigned Python ints.

Only the instructions that can decide a branch matter here; values that come from memory or from floating-point
arithmetic are unknown (None), and whatever is computed from an unknown value is unknown. The semantics were read off
compiled code and are held by tests that run kernels with known trip counts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

MASK = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
Value = int | None


@dataclass(frozen=True)
class Partial:
    """A word some of whose bits are unknown: kernels keep several predicates as bits of one register."""

    value: int
    unknown: int


Word = int | Partial | None


def bits_of(word: Word) -> tuple[int, int]:
    """(known bits, mask of unknown bits)."""
    if word is None:
        return 0, MASK
    return (word.value, word.unknown) if isinstance(word, Partial) else (word, 0)


def word_of(value: int, unknown: int) -> Word:
    if unknown == 0:
        return value
    return None if unknown == MASK else Partial(value & ~unknown, unknown)


def merge(before: Word, after: Word) -> Word:
    """What is known of a word that may or may not have been overwritten."""
    (old, old_unknown), (new, new_unknown) = bits_of(before), bits_of(after)
    return word_of(new, (old_unknown | new_unknown | old ^ new) & MASK)


def lop3_bits(a: Word, b: Word, c: Word, table: int) -> Word:
    """`lop3` bit by bit: a result bit is known when the unknown bits of its sources cannot change it."""
    ones = zeros = 0
    words = [bits_of(word) for word in (a, b, c)]
    can = [(~value | unknown, value | unknown) for value, unknown in words]
    for row in range(8):
        reach = can[0][row >> 2 & 1] & can[1][row >> 1 & 1] & can[2][row & 1]
        if table >> row & 1:
            ones |= reach
        else:
            zeros |= reach
    return word_of(ones & ~zeros & MASK, ones & zeros & MASK)


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def as_float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits & MASK))[0])


def float_bits(value: float) -> int:
    try:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return 0x7F800000 if value > 0 else 0xFF800000


def half_bits(value: float) -> int:
    return int(struct.unpack("<H", struct.pack("<e", value))[0])


def lop3(a: int, b: int, c: int, table: int) -> int:
    """Bitwise function of three words given by its 8-entry truth table."""
    result = 0
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result & MASK


def shift(modifiers: Sequence[str], low: int, amount: int, high: int) -> int:
    """SHF: the 64-bit value high:low shifted, its low or (.HI) high word returned."""
    wide = "U64" in modifiers or "S64" in modifiers
    amount = amount & 31 if "W" in modifiers and not wide else min(amount, 63 if wide else 32)
    value = high << 32 | low
    if "L" in modifiers:
        value = value << amount
    else:
        value = (signed(value, 64) if "S32" in modifiers or "S64" in modifiers else value) >> amount
    return (value >> 32 if "HI" in modifiers else value) & MASK


def permute(a: int, selector: int, c: int) -> int:
    """PRMT in its default mode: four bytes picked from c:a, bit 3 of a nibble replicates the sign."""
    pool = c << 32 | a
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 0xF
        byte = pool >> 8 * (nibble & 7) & 0xFF
        if nibble & 8:
            byte = 0xFF if byte & 0x80 else 0
        result |= byte << 8 * i
    return result


def leading_one(modifiers: Sequence[str], value: int) -> int:
    if "U32" not in modifiers and value >> 31:
        value = ~value & MASK
    if value == 0:
        return MASK
    position = value.bit_length() - 1
    return 31 - position if "SH" in modifiers else position


def extend(modifiers: Sequence[str], value: int, bits: int) -> int:
    """SGXT: the low `bits` bits, sign-extended unless .U32."""
    if bits >= 32:
        return value
    if bits == 0:
        return 0
    low = value & ((1 << bits) - 1)
    return low if "U32" in modifiers else signed(low, bits) & MASK


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b, "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b, "GE": lambda a, b: a >= b, "EQU": lambda a, b: a == b, "NEU": lambda a, b: a != b,
    "LTU": lambda a, b: a < b, "LEU": lambda a, b: a <= b, "GTU": lambda a, b: a > b, "GEU": lambda a, b: a >= b,
}  # fmt: skip


def comparison(modifiers: Sequence[str]) -> str:
    return next((name for name in modifiers if name in _COMPARE or name in ("T", "F")), "")


def compare(name: str, a: float, b: float, below: bool | None = None) -> bool:
    """One comparison; `below` is the result for the low words when a and b are the high words (.EX)."""
    if name in ("T", "F"):
        return name == "T"
    if below is None:
        return _COMPARE[name](a, b)
    if name in ("EQ", "NE"):
        return a == b and below if name == "EQ" else a != b or below
    return below if a == b else _COMPARE[name](a, b)


def combine(modifiers: Sequence[str], a: Value, b: Value) -> Value:
    """A comparison result with the trailing predicate of a set-predicate instruction: and, or, xor."""
    if "OR" in modifiers:
        return 1 if a or b else None if a is None or b is None else 0
    if "XOR" in modifiers:
        return None if a is None or b is None else a ^ b
    return 0 if a == 0 or b == 0 else None if a is None or b is None else 1


def float_to_int(modifiers: Sequence[str], bits: int) -> int:
    value = as_float(bits)
    if not isfinite(value):
        return MASK if value > 0 else 0
    whole = int(value) if "TRUNC" in modifiers else round(value)
    if "FLOOR" in modifiers or "CEIL" in modifiers:
        whole = int(value // 1) if "FLOOR" in modifiers else -int(-value // 1)
    if "U32" in modifiers:
        return max(0, min(whole, MASK))
    return max(-(1 << 31), min(whole, (1 << 31) - 1)) & MASK


def reciprocal(bits: int) -> int:
    value = as_float(bits)
    return float_bits(1.0 / value) if value else 0x7F800000
