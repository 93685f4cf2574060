"""Integer and predicate arithmetic: a closure for each instruction that updates a thread's registers."""

from __future__ import annotations

from collections.abc import Callable

from vitbench.audit.sass import integers as alu
from vitbench.audit.sass.integers import MASK, Value, Word, signed
from vitbench.audit.sass.listing import Instruction, is_predicate
from vitbench.audit.sass.thread import Getter, Step, Thread, getter, shape, word_getter


def put(t: Thread, name: str, value: Word) -> None:
    if name[-1] not in "ZT":
        t.values[name] = value


def put_wide(t: Thread, register: str, value: Value) -> None:
    if register[-1] == "Z":
        return
    stem = register.rstrip("0123456789")
    t.values[register] = None if value is None else value & MASK
    t.values[f"{stem}{int(register[len(stem) :]) + 1}"] = None if value is None else value >> 32 & MASK


def known(getters: list[Getter], t: Thread) -> list[int] | None:
    values: list[int] = []
    for get in getters:
        value = get(t)
        if value is None:
            return None
        values.append(value)
    return values


def simple(compute: Callable[..., int], sources: int) -> Callable[[Instruction], Step]:
    """An instruction that maps its first `sources` 32-bit sources to one register."""

    def build(i: Instruction) -> Step:
        form = shape(i)
        getters = [getter(s) for s in form.sources[:sources]]

        def run(t: Thread) -> None:
            values = known(getters, t)
            put(t, form.register, None if values is None else compute(*values) & MASK)

        return run

    return build


def with_modifiers(compute: Callable[..., int], sources: int) -> Callable[[Instruction], Step]:
    return lambda i: simple(lambda *values: compute(i.modifiers, *values), sources)(i)


def move(i: Instruction) -> Step:
    form = shape(i)
    if "64" in i.modifiers:
        wide = getter(form.sources[0], 64)
        return lambda t: put_wide(t, form.register, wide(t))
    source = word_getter(form.sources[0])
    return lambda t: put(t, form.register, source(t))


def multiply_add(i: Instruction) -> Step:
    form = shape(i)
    plain = "U32" in i.modifiers
    wide = "WIDE" in i.modifiers or "HI" in i.modifiers
    a, b = (getter(s) for s in form.sources[:2])
    c = getter(form.sources[2], 64 if wide else 32, carrying=True)
    carry = getter(form.predicates[0]) if "X" in i.modifiers and form.predicates else None

    def run(t: Thread) -> None:
        values = known([a, b, c, carry] if carry else [a, b, c], t)
        total: Value = None
        if values is not None:
            x, y = values[0], values[1]
            if wide and not plain:
                x, y = signed(x), signed(y)
            total = x * y + values[2] + (values[3] if carry else 0)
        if "WIDE" in i.modifiers:
            put_wide(t, form.register, total)
        elif "HI" in i.modifiers:
            put(t, form.register, None if total is None else total >> 32 & MASK)
        else:
            put(t, form.register, None if total is None else total & MASK)
        for name in form.carries:
            put(t, name, None if total is None else total >> (64 if wide else 32) & 1)

    return run


def add(i: Instruction) -> Step:
    form = shape(i)
    bits = 64 if "64" in i.modifiers else 32
    sources = [getter(s, bits, carrying=True) for s in form.sources]
    extra = [getter(p) for p in form.predicates] if "X" in i.modifiers else []
    mask = (1 << bits) - 1

    def run(t: Thread) -> None:
        values = known(sources + extra, t)
        total = None if values is None else sum(values)
        result = None if total is None else total & mask
        if bits == 64:
            put_wide(t, form.register, result)
        else:
            put(t, form.register, result)
        for level, name in enumerate(form.carries, start=1):
            put(t, name, None if total is None else int(total >> bits >= level))

    return run


def shift_add(i: Instruction) -> Step:
    """LEA: (a << s) + b; .HI takes the high word of c:a shifted, .SX32 the sign of a for c, .X adds a carry."""
    form = shape(i)
    sources = [getter(s, carrying=position == 1) for position, s in enumerate(form.sources)]
    extra = [getter(p) for p in form.predicates[:1]] if "X" in i.modifiers else []

    def run(t: Thread) -> None:
        values = known(sources + extra, t)
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
        put(t, form.register, None if total is None else total & MASK)
        for name in form.carries[:1]:
            put(t, name, None if total is None else int(total > MASK))

    return run


def logic(i: Instruction) -> Step:
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
        put(t, form.register, result)
        for name in form.carries[:1]:
            value, unknown = alu.bits_of(result)
            test = 1 if value else None if unknown else 0
            put(t, name, alu.combine(("OR",), test, extra(t)) if extra else test)

    return run


def predicate_logic(i: Instruction) -> Step:
    names = [o for o in i.operands if is_predicate(o)]
    tables = [int(o, 16) for o in i.operands if not is_predicate(o)]
    sources = [getter(name) for name in names[2:5]]
    kept = [(name, table) for name, table in zip(names[:2], tables, strict=False) if name[-1] != "T"]

    def run(t: Thread) -> None:
        values = [get(t) for get in sources]
        can = [(0, 1) if value is None else (value,) for value in values]
        rows = [a << 2 | b << 1 | c for a in can[0] for b in can[1] for c in can[2]]
        for name, table in kept:
            found = table >> rows[0] & 1
            put(t, name, found if all(table >> row & 1 == found for row in rows[1:]) else None)

    return run


def set_predicate(i: Instruction) -> Step:
    names = [o for o in i.operands if is_predicate(o)]
    bits = 64 if "U64" in i.modifiers or "S64" in i.modifiers else 32
    left, right = (getter(o, bits) for o in i.operands if not is_predicate(o))
    # The second result is of the opposite comparison.
    kept = [(result, opposite) for opposite, result in enumerate(names[:2]) if result[-1] != "T"]
    extra = [getter(name) for name in names[2:]]
    name, extended = alu.comparison(i.modifiers), "EX" in i.modifiers
    # With their signs turned, signed numbers are in the order of unsigned ones.
    turn = 0 if "U32" in i.modifiers or "U64" in i.modifiers else 1 << bits - 1

    def run(t: Thread) -> None:
        a, b, test = left(t), right(t), None
        below = extra[1](t) if extended and len(extra) > 1 else 1
        if a is not None and b is not None and below is not None:
            test = int(alu.compare(name, a ^ turn, b ^ turn, bool(below) if extended else None))
        trailing = extra[0](t) if extra else 1
        for result, opposite in kept:
            value = None if test is None else test ^ opposite
            put(t, result, alu.combine(i.modifiers, value, trailing))

    return run


def select(i: Instruction) -> Step:
    form = shape(i)
    a, b, choice = word_getter(form.sources[0]), word_getter(form.sources[1]), getter(form.predicates[0])

    def run(t: Thread) -> None:
        chosen = choice(t)
        left, right = a(t), b(t)
        if chosen is None:
            put(t, form.register, alu.merge(left, right))
        else:
            put(t, form.register, left if chosen else right)

    return run


def minmax(i: Instruction) -> Step:
    """Minimum where the predicate holds, maximum where not; VIADDMNMX adds its first two sources before."""
    form = shape(i)
    sources = [getter(s) for s in form.sources]
    choice = getter(form.predicates[0]) if form.predicates else (lambda t: 1)
    to_number: Callable[[int], int] = int if "U32" in i.modifiers else signed

    def run(t: Thread) -> None:
        values, chosen = known(sources, t), choice(t)
        result: Value = None
        if values is not None and chosen is not None:
            if "ADD" in i.name:
                values = [(values[0] + values[1]) & MASK, *values[2:]]
            numbers = [to_number(v) for v in values]
            result = (min(numbers) if chosen else max(numbers)) & MASK
        put(t, form.register, result)

    return run
