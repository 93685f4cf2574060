"""Multiply-accumulates of an einsum: operands are contracted two at a time, in the order that torch takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

Sizes = dict[str, int]


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None) -> int:
    """Exact multiply-accumulates; for two operands the product of the sizes of all labels.

    A label that only one of two operands has and that no later one needs is summed away before, and an axis of size 1
    that is broadcast counts as none, so neither multiplies. Two operands over which nothing is summed are multiplied
    element by element, which by convention is no product; one operand alone has none.

    Args:
        equation: as of torch.einsum, with "..." and without an output if need be.
        shapes: of the operands.
        path: pairs of positions, flat, which are contracted in turn, the result going to the end; default from
            left to right.
    """
    operands, output = _labelled(equation, shapes)
    remaining = list(operands)
    order = list(path) if path else []
    macs = 0
    while len(remaining) > 1:
        first, second = (order.pop(0), order.pop(0)) if order else (0, 1)
        a, b = (remaining.pop(at) for at in sorted((first, second), reverse=True))
        needed = set(output).union(*remaining)
        both = [label for label in {**a, **b} if label in needed or (label in a and label in b)]
        sizes = {label: max(a.get(label, 1), b.get(label, 1)) for label in both}
        if any(label not in needed for label in both):
            macs += prod(sizes.values())
        result = {label: size for label, size in sizes.items() if label in needed}
        remaining.insert(len(remaining) if path else 0, result)
    return macs


def _labelled(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[Sizes], str]:
    """The operands' sizes by label, without broadcast axes of size 1, and the output's labels.

    The axes that "..." stands for are labelled from the last by digits.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    operands: list[Sizes] = []
    rest = 0
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after)
        rest = max(rest, hidden if dots else 0)
        labels = [*before, *(_digit(at) for at in range(hidden - 1, -1, -1)), *after] if dots else [*before]
        operands.append({label: size for label, size in zip(labels, shape, strict=True) if size > 1})
    dotted = "".join(_digit(at) for at in range(rest))
    if arrow:
        return operands, output.replace("...", dotted)
    seen = Counter("".join(terms).replace("...", ""))
    return operands, dotted + "".join(label for label, times in seen.items() if times == 1)


def _digit(at: int) -> str:
    """A label that no equation can hold."""
    return chr(0x100 + at)


__all__ = ["einsum_macs"]
