"""One closure per machine instruction of the control slice; what is not listed leaves its results unknown."""

from __future__ import annotations

import re
from collections.abc import Callable

from vitbench.audit import integers as alu
from vitbench.audit.effects import stack_slots, writes
from vitbench.audit.integers import MASK, Value, Word, signed
from vitbench.audit.machine import Getter, Step, Thread, getter, shape, word_getter
from vitbench.audit.sass import Instruction, is_predicate, register_of

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


def _put(t: Thread, name: str, value: Word) -> None:
    if name[-1] not in "ZT":
        t.values[name] = value


def _put_wide(t: Thread, register: str, value: Value) -> None:
    if register[-1] == "Z":
        return
    stem = register.rstrip("0123456789")
    t.values[register] = None if value is None else value & MASK
    t.values[f"{stem}{int(register[len(stem) :]) + 1}"] = None if value is None else value >> 32 & MASK


def _known(getters: list[Getter], t: Thread) -> list[int] | None:
    values = [get(t) for get in getters]
    return None if None in values else [v for v in values if v is not None]


def _simple(compute: Callable[..., int], sources: int) -> Callable[[Instruction], Step]:
    """An instruction that maps its first `sources` 32-bit sources to one register."""

    def build(i: Instruction) -> Step:
        form = shape(i)
        getters = [getter(s) for s in form.sources[:sources]]

        def run(t: Thread) -> None:
            values = _known(getters, t)
            _put(t, form.register, None if values is None else compute(*values) & MASK)

        return run

    return build


def _with_modifiers(compute: Callable[..., int], sources: int) -> Callable[[Instruction], Step]:
    return lambda i: _simple(lambda *values: compute(i.modifiers, *values), sources)(i)


def _move(i: Instruction) -> Step:
    form = shape(i)
    if "64" in i.modifiers:
        wide = getter(form.sources[0], 64)
        return lambda t: _put_wide(t, form.register, wide(t))
    source = word_getter(form.sources[0])
    return lambda t: _put(t, form.register, source(t))


def _multiply_add(i: Instruction) -> Step:
    form = shape(i)
    plain = "U32" in i.modifiers
    wide = "WIDE" in i.modifiers or "HI" in i.modifiers
    a, b = (getter(s) for s in form.sources[:2])
    c = getter(form.sources[2], 64 if wide else 32, carrying=True)
    carry = getter(form.predicates[0]) if "X" in i.modifiers and form.predicates else None

    def run(t: Thread) -> None:
        values = _known([a, b, c, carry] if carry else [a, b, c], t)
        total: Value = None
        if values is not None:
            x, y = values[0], values[1]
            if wide and not plain:
                x, y = signed(x), signed(y)
            total = x * y + values[2] + (values[3] if carry else 0)
        if "WIDE" in i.modifiers:
            _put_wide(t, form.register, total)
        elif "HI" in i.modifiers:
            _put(t, form.register, None if total is None else total >> 32 & MASK)
        else:
            _put(t, form.register, None if total is None else total & MASK)
        for name in form.carries:
            _put(t, name, None if total is None else total >> (64 if wide else 32) & 1)

    return run


def _add(i: Instruction) -> Step:
    form = shape(i)
    bits = 64 if "64" in i.modifiers else 32
    sources = [getter(s, bits, carrying=True) for s in form.sources]
    extra = [getter(p) for p in form.predicates] if "X" in i.modifiers else []
    mask = (1 << bits) - 1

    def run(t: Thread) -> None:
        values = _known(sources + extra, t)
        total = None if values is None else sum(values)
        result = None if total is None else total & mask
        if bits == 64:
            _put_wide(t, form.register, result)
        else:
            _put(t, form.register, result)
        for level, name in enumerate(form.carries, start=1):
            _put(t, name, None if total is None else int(total >> bits >= level))

    return run


def _shift_add(i: Instruction) -> Step:
    """LEA: (a << s) + b; .HI takes the high word of c:a shifted, .SX32 the sign of a for c, .X adds a carry."""
    form = shape(i)
    sources = [getter(s, carrying=position == 1) for position, s in enumerate(form.sources)]
    extra = [getter(p) for p in form.predicates[:1]] if "X" in i.modifiers else []

    def run(t: Thread) -> None:
        values = _known(sources + extra, t)
        total: Value = None
        if values is not None:
            carry = values.pop() if extra else 0
            a, b, amount = values[0], values[1], values[-1] & 31
            if "HI" in i.modifiers:
                high = (MASK if a >> 31 else 0) if "SX32" in i.modifiers else values[2] if len(values) > 3 else 0
                shifted = ((high << 32 | a) << amount) >> 32 & MASK
            else:
                shifted = a << amount & MASK
            total = shifted + b + carry
        _put(t, form.register, None if total is None else total & MASK)
        for name in form.carries[:1]:
            _put(t, name, None if total is None else int(total > MASK))

    return run


def _logic(i: Instruction) -> Step:
    form = shape(i)
    a, b, c = (word_getter(s) for s in form.sources[:3])
    table = int(form.sources[3], 16)
    extra = getter(form.predicates[0]) if form.predicates else None

    def run(t: Thread) -> None:
        x, y, z = a(t), b(t), c(t)
        result: Word
        if isinstance(x, int) and isinstance(y, int) and isinstance(z, int):
            result = alu.lop3(x, y, z, table)
        else:
            result = alu.lop3_bits(x, y, z, table)
        _put(t, form.register, result)
        for name in form.carries[:1]:
            value, unknown = alu.bits_of(result)
            test = 1 if value else None if unknown else 0
            _put(t, name, alu.combine(("OR",), test, extra(t)) if extra else test)

    return run


def _predicate_logic(i: Instruction) -> Step:
    names = [o for o in i.operands if is_predicate(o)]
    tables = [int(o, 16) for o in i.operands if not is_predicate(o)]
    results, sources = names[:2], [getter(name) for name in names[2:5]]

    def run(t: Thread) -> None:
        values = [get(t) for get in sources]
        for name, table in zip(results, tables, strict=False):
            rows = {
                table >> (a << 2 | b << 1 | c) & 1
                for a in ((0, 1) if values[0] is None else (values[0],))
                for b in ((0, 1) if values[1] is None else (values[1],))
                for c in ((0, 1) if values[2] is None else (values[2],))
            }
            _put(t, name, rows.pop() if len(rows) == 1 else None)

    return run


def _set_predicate(i: Instruction) -> Step:
    names = [o for o in i.operands if is_predicate(o)]
    bits = 64 if "U64" in i.modifiers or "S64" in i.modifiers else 32
    sources = [getter(o, bits) for o in i.operands if not is_predicate(o)]
    results, extra = names[:2], [getter(name) for name in names[2:]]
    name = alu.comparison(i.modifiers)
    unsigned = "U32" in i.modifiers or "U64" in i.modifiers

    def run(t: Thread) -> None:
        values = _known(sources, t)
        test: Value = None
        below = extra[1](t) if "EX" in i.modifiers and len(extra) > 1 else 1
        if values is not None and below is not None:
            a, b = values if unsigned else (signed(values[0], bits), signed(values[1], bits))
            test = int(alu.compare(name, a, b, bool(below) if "EX" in i.modifiers else None))
        trailing = extra[0](t) if extra else 1
        first = alu.combine(i.modifiers, test, trailing)
        second = alu.combine(i.modifiers, None if test is None else 1 - test, trailing)
        for result, value in zip(results, (first, second), strict=False):
            _put(t, result, value)

    return run


def _select(i: Instruction) -> Step:
    form = shape(i)
    a, b, choice = word_getter(form.sources[0]), word_getter(form.sources[1]), getter(form.predicates[0])

    def run(t: Thread) -> None:
        chosen = choice(t)
        left, right = a(t), b(t)
        if chosen is None:
            _put(t, form.register, alu.merge(left, right))
        else:
            _put(t, form.register, left if chosen else right)

    return run


def _minmax(i: Instruction) -> Step:
    """Minimum where the predicate holds, maximum where not; VIADDMNMX adds its first two sources before."""
    form = shape(i)
    sources = [getter(s) for s in form.sources]
    choice = getter(form.predicates[0]) if form.predicates else (lambda t: 1)
    to_number: Callable[[int], int] = int if "U32" in i.modifiers else signed

    def run(t: Thread) -> None:
        values, chosen = _known(sources, t), choice(t)
        result: Value = None
        if values is not None and chosen is not None:
            if "ADD" in i.name:
                values = [(values[0] + values[1]) & MASK, *values[2:]]
            numbers = [to_number(v) for v in values]
            result = (min(numbers) if chosen else max(numbers)) & MASK
        _put(t, form.register, result)

    return run


def _load_constant(i: Instruction) -> Step:
    form = shape(i)
    source = getter(form.sources[0], 64 if i.width_bytes == 8 else 32)
    if i.width_bytes == 8:
        return lambda t: _put_wide(t, form.register, source(t))
    mask = (1 << 8 * min(i.width_bytes, 4)) - 1

    def run(t: Thread) -> None:
        value = source(t)
        _put(t, form.register, None if value is None else value & mask)

    return run


def _special(i: Instruction) -> Step:
    form = shape(i)
    if form.sources[0] == "SRZ":
        wide = "32" not in i.modifiers
        return lambda t: _put_wide(t, form.register, 0) if wide else _put(t, form.register, 0)
    return lambda t: _put(t, form.register, t.special.get(form.sources[0]))


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
        _put(t, register, alu.word_of(value, unknown))

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
    return lambda t: _put(t, register, value)


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
            values = _known(getters, t)
            result = None if values is None else alu.float_bits(compute(*(alu.as_float(v) for v in values)))
            _put(t, form.register, result)

        return run

    return build


def _special_function(i: Instruction) -> Step | None:
    return _simple(alu.reciprocal, 1)(i) if "RCP" in i.modifiers and "64H" not in i.modifiers else None


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
        _put(t, form.register, source(t))
        for name in form.carries:
            _put(t, name, 1)

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


def _bit_mask(start: int, length: int) -> int:
    return ((1 << min(length, 32)) - 1) << min(start, 32)


_HANDLERS: dict[str, Callable[[Instruction], Step | None]] = {
    "MOV": _move, "UMOV": _move, "R2UR": _move, "IMAD": _multiply_add, "IADD3": _add, "IADD": _add, "VIADD": _add,
    "LEA": _shift_add, "LOP3": _logic, "PLOP3": _predicate_logic, "ISETP": _set_predicate, "SEL": _select,
    "IMNMX": _minmax, "VIMNMX": _minmax, "VIMNMX3": _minmax, "VIADDMNMX": _minmax,
    "LDC": _load_constant, "LDCU": _load_constant, "ULDC": _load_constant,
    "S2R": _special, "S2UR": _special, "CS2R": _special,
    "P2R": _pack_predicates, "UP2UR": _pack_predicates, "R2P": _unpack_predicates, "UR2UP": _unpack_predicates,
    "SHF": _with_modifiers(alu.shift, 3), "SGXT": _with_modifiers(alu.extend, 2), "PRMT": _simple(alu.permute, 3),
    "FLO": _with_modifiers(alu.leading_one, 1), "POPC": _simple(int.bit_count, 1),
    "IABS": _simple(lambda v: abs(signed(v)), 1), "BMSK": _simple(_bit_mask, 2),
    "HFMA2": _half_constant, "I2F": _with_modifiers(_int_to_float, 1), "I2FP": _with_modifiers(_int_to_float, 1),
    "F2I": _with_modifiers(alu.float_to_int, 1), "MUFU": _special_function,
    "FADD": _float_arithmetic(lambda a, b: a + b), "FMUL": _float_arithmetic(lambda a, b: a * b),
    "FFMA": _float_arithmetic(lambda a, b, c: a * b + c),
    "VOTE": _warp_vote, "VOTEU": _warp_vote, "SHFL": _shuffle, "ELECT": _elect, "SYNCS": _arrived,
    "UTCATOMSWS": _arrived, "LDL": _from_stack, "STL": _to_stack,
}  # fmt: skip
