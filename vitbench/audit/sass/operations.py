"""One closure per machine instruction of the control slice; what is not listed leaves its results unknown."""

from __future__ import annotations

import re
from collections.abc import Callable

from vitbench.audit.sass import arithmetic as arith
from vitbench.audit.sass import integers as alu
from vitbench.audit.sass.arithmetic import known, put, put_wide, simple, with_modifiers
from vitbench.audit.sass.effects import stack_slots, writes
from vitbench.audit.sass.integers import signed
from vitbench.audit.sass.listing import Instruction, is_predicate, register_of
from vitbench.audit.sass.thread import Getter, Step, Thread, getter, shape, word_getter

_CONSTANT = re.compile(r"^c\[0x0\]\[0x([0-9a-f]+)\]$")
_ADDRESS = re.compile(r"\[(U?R\d+)(?:\.64)?(?:\+(0x[0-9a-f]+))?\]$")
_NUMBER = re.compile(r"^[-+]?\d+(\.\d*)?(e[-+]?\d+)?$")


def step(instruction: Instruction) -> Step:
    """What the instruction does to a thread, its guard included."""
    handler = _HANDLERS.get(instruction.name) or _HANDLERS.get(instruction.name.removeprefix("U"))
    body = handler(instruction) if handler else None
    outputs = writes(instruction)

    def forget(t: Thread) -> None:
        for name in outputs:
            t.values[name] = None

    run = forget if body is None else body
    if not instruction.guard:
        return run
    guard = getter(instruction.guard)

    def guarded(t: Thread) -> None:
        value = guard(t)
        if value is None:
            before = [t.values.get(name) for name in outputs]
            run(t)
            for name, word in zip(outputs, before, strict=True):
                t.values[name] = alu.merge(word, t.values.get(name))
        elif value:
            run(t)

    return guarded


def _load_constant(i: Instruction) -> Step:
    results = writes(i)
    if i.width_bytes < 4:
        mask = (1 << 8 * i.width_bytes) - 1
        return simple(lambda value: value & mask, 1)(i)
    found = _CONSTANT.match(shape(i).sources[0])
    first = int(found.group(1), 16) if found else None

    def run(t: Thread) -> None:
        for word, name in enumerate(results):
            t.values[name] = None if first is None else t.word(first + 4 * word)

    return run


def _special(i: Instruction) -> Step:
    form = shape(i)
    if form.sources[0] == "SRZ":
        wide = "32" not in i.modifiers
        return lambda t: put_wide(t, form.register, 0) if wide else put(t, form.register, 0)
    return lambda t: put(t, form.register, t.special.get(form.sources[0]))


def _pack_predicates(i: Instruction) -> Step | None:
    if i.modifiers:
        return None
    prefix = "UP" if i.name.startswith("U") else "P"
    kept, mask, register = word_getter(i.operands[2]), int(i.operands[3], 16), shape(i).register

    def run(t: Thread) -> None:
        value, unknown = alu.bits_of(kept(t))
        for bit in range(7):
            if mask >> bit & 1:
                on = t.known(f"{prefix}{bit}")
                value = value & ~(1 << bit) | (on or 0) << bit
                unknown = unknown & ~(1 << bit) | (on is None) << bit
        put(t, register, alu.word_of(value, unknown))

    return run


def _unpack_predicates(i: Instruction) -> Step:
    prefix = "UP" if i.name.startswith("U") else "P"
    source, mask = word_getter(i.operands[1]), int(i.operands[2], 16) if len(i.operands) > 2 else 0x7F

    def run(t: Thread) -> None:
        value, unknown = alu.bits_of(source(t))
        for bit in range(7):
            if mask >> bit & 1:
                t.values[f"{prefix}{bit}"] = None if unknown >> bit & 1 else value >> bit & 1

    return run


def _half_constant(i: Instruction) -> Step | None:
    """HFMA2 with a zero product is how the compiler writes a small constant: two halves, the low one last."""
    sources = shape(i).sources
    if len(sources) < 4 or any((register_of(s) or "") != "RZ" for s in sources[:2]):
        return None
    if not all(_NUMBER.match(s) for s in sources[2:4]):
        return None
    value = alu.half_bits(float(sources[2])) << 16 | alu.half_bits(float(sources[3]))
    register = shape(i).register
    return lambda t: put(t, register, value)


def _float_source(operand: str) -> Getter:
    if _NUMBER.match(operand):
        bits = alu.float_bits(float(operand))
        return lambda t: bits
    inner = getter(operand.lstrip("-"))
    if operand.startswith("-"):
        return lambda t: None if (v := inner(t)) is None else v ^ 0x80000000
    return inner


def _float_arithmetic(compute: Callable[..., float]) -> Callable[[Instruction], Step]:
    def build(i: Instruction) -> Step:
        form = shape(i)
        getters = [_float_source(s) for s in form.sources]

        def run(t: Thread) -> None:
            values = known(getters, t)
            result = None if values is None else alu.float_bits(compute(*(alu.as_float(v) for v in values)))
            put(t, form.register, result)

        return run

    return build


def _special_function(i: Instruction) -> Step | None:
    return simple(alu.reciprocal, 1)(i) if "RCP" in i.modifiers and "64H" not in i.modifiers else None


def _int_to_float(modifiers: tuple[str, ...], value: int) -> int:
    return alu.float_bits(value if "U32" in modifiers else signed(value))


def _warp_vote(i: Instruction) -> Step:
    """Warp-wide and, or and shuffles from lane b are taken as this thread's own value: uniform in compiled loops."""
    source = getter(i.operands[-1])
    results = writes(i)
    predicates = [name for name in results if is_predicate(name)]

    def run(t: Thread) -> None:
        for name in results:
            t.values[name] = source(t) if name in predicates else None

    return run


def _shuffle(i: Instruction) -> Step | None:
    if "IDX" not in i.modifiers:
        return None
    form = shape(i)
    source = getter(form.sources[0])

    def run(t: Thread) -> None:
        put(t, form.register, source(t))
        for name in form.carries:
            put(t, name, 1)

    return run


def _elect(i: Instruction) -> Step:
    results = [name for name in writes(i) if is_predicate(name)]

    def run(t: Thread) -> None:
        for name in results:
            lane = t.special.get("SR_LANEID")
            t.values[name] = None if lane is None else int(lane == 0)

    return run


def _arrived(i: Instruction) -> Step:
    """A wait on a barrier, or a claim of tensor memory, is taken to succeed at once."""
    results = writes(i)

    def run(t: Thread) -> None:
        for name in results:
            t.values[name] = 1 if is_predicate(name) else 0 if "FIND_AND_SET" in i.modifiers else None

    return run


def _from_stack(i: Instruction) -> Step | None:
    slots, results = stack_slots(i), writes(i)
    if not slots or i.width_bytes < 4:
        return None

    def run(t: Thread) -> None:
        for name, slot in zip(results, slots, strict=False):
            t.values[name] = t.values.get(slot)

    return run


def _to_stack(i: Instruction) -> Step | None:
    slots = stack_slots(i)
    register = register_of(i.operands[1]) or "RZ"
    if not slots or i.width_bytes < 4:
        return None
    stem = register.rstrip("0123456789")
    first = int(register[len(stem) :]) if register != "RZ" else 0

    def run(t: Thread) -> None:
        for word, slot in enumerate(slots):
            t.values[slot] = 0 if register == "RZ" else t.values.get(f"{stem}{first + word}")

    return run


def _from_memory(i: Instruction) -> Step | None:
    """A load of integers whose values were given; everything else that it may read is unknown."""
    found = _ADDRESS.search(i.operands[-1])
    results = [name for name in writes(i) if not is_predicate(name)]
    if not found or len(i.operands) != 2 or not results:
        return None
    base, offset = getter(found[1], 64), int(found[2] or "0", 16)
    sign = any(modifier in ("S8", "S16") for modifier in i.modifiers)

    def run(t: Thread) -> None:
        address = base(t)
        data = t.loaded(None if address is None else address + offset, i.width_bytes)
        for word, name in enumerate(results):
            piece = None if data is None else data[4 * word : 4 * word + 4]
            value = None if piece is None else int.from_bytes(piece, "little", signed=sign)
            t.values[name] = None if value is None else value & alu.MASK

    return run


def _bit_mask(start: int, length: int) -> int:
    return ((1 << min(length, 32)) - 1) << min(start, 32)


def _compare_floats(i: Instruction) -> Step | None:
    """Whether one of two is NaN: data are taken to be numbers, so that what a kernel does about NaN is not run."""
    if i.modifiers != ("NAN", "AND"):
        return None
    results = [name for name in writes(i) if is_predicate(name)]
    return lambda t: put(t, results[0], 0)


_HANDLERS: dict[str, Callable[[Instruction], Step | None]] = {
    "MOV": arith.move, "UMOV": arith.move, "R2UR": arith.move, "IMAD": arith.multiply_add, "LEA": arith.shift_add,
    "IADD3": arith.add, "IADD": arith.add, "VIADD": arith.add, "LOP3": arith.logic, "PLOP3": arith.predicate_logic,
    "ISETP": arith.set_predicate, "SEL": arith.select, "IMNMX": arith.minmax, "VIMNMX": arith.minmax,
    "VIMNMX3": arith.minmax, "VIADDMNMX": arith.minmax,
    "LDC": _load_constant, "LDCU": _load_constant, "ULDC": _load_constant,
    "S2R": _special, "S2UR": _special, "CS2R": _special,
    "P2R": _pack_predicates, "UP2UR": _pack_predicates, "R2P": _unpack_predicates, "UR2UP": _unpack_predicates,
    "SHF": with_modifiers(alu.shift, 3), "SGXT": with_modifiers(alu.extend, 2), "PRMT": simple(alu.permute, 3),
    "FLO": with_modifiers(alu.leading_one, 1), "POPC": simple(int.bit_count, 1),
    "IABS": simple(lambda v: abs(signed(v)), 1), "BMSK": simple(_bit_mask, 2),
    "HFMA2": _half_constant, "I2F": with_modifiers(_int_to_float, 1), "I2FP": with_modifiers(_int_to_float, 1),
    "F2I": with_modifiers(alu.float_to_int, 1), "MUFU": _special_function,
    "FADD": _float_arithmetic(lambda a, b: a + b), "FMUL": _float_arithmetic(lambda a, b: a * b),
    "FFMA": _float_arithmetic(lambda a, b, c: a * b + c),
    "VOTE": _warp_vote, "VOTEU": _warp_vote, "SHFL": _shuffle, "ELECT": _elect, "SYNCS": _arrived,
    "UTCATOMSWS": _arrived, "LDL": _from_stack, "STL": _to_stack,
    "LDG": _from_memory, "FSETP": _compare_floats,
}  # fmt: skip
