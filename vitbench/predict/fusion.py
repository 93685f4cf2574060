"""Which kernels torch.compile starts for a model's operators: what inductor fuses is one pass over memory.

Products, convolutions and attention stay kernels of their libraries. Everything between two of them that an edge of the
data flow connects is one kernel: it reads once what it did not make itself, and writes what others read. As inductor
does, convolutions run channels-last where its estimate says so (`decide_layout_opt` of torch._inductor), and their
biases are added by what follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vitbench.predict.kernels import is_channels_last, kernel
from vitbench.predict.operators import BATCH, Call, Operand, Step
from vitbench.predict.table import Kernel

#: What inductor writes kernels for, the slowest way to memory first: a fused kernel is of the first kind that it has.
_FUSED = ("normalisation", "softmax", "reduction", "pooling", "gather", "resize", "strided copy", "batch norm",
          "broadcast", "copy", "elementwise")  # fmt: skip
_NEVER = ("topk", "sort", "cumsum")
#: What becomes plain arithmetic when it is fused.
_PLAIN = {"resize": "gather", "batch norm": "elementwise", "broadcast": "elementwise", "copy": "elementwise"}
#: Inductor's estimate of convolutions' time channels-last, of their time otherwise.
_GROUPED, _NARROWING, _SMALL, _OTHER = 1.358, 0.725, 0.783, 0.823
_FEW_CHANNELS = 64
#: Nodes of inductor's graph for each convolution from which it leaves the layout alone; it has views among them.
_NODES, _VIEWS = 300, 1.6


def layout(steps: Sequence[Step]) -> str:
    """In which layout inductor runs a model that is given to it in nchw."""
    calls = [step.call for step in steps if step.call.op == "convolution"]
    if not calls or _VIEWS * len(steps) >= _NODES * len(calls):
        return "nchw"
    macs = [kernel(call).macs for call in calls]
    last = sum(_channels_last(call) * count for call, count in zip(calls, macs, strict=True))
    return "nhwc" if last <= sum(macs) else "nchw"


def _channels_last(call: Call) -> float:
    outputs, inputs, width = call.inputs[1].shape[:3]
    if call.numbers[-1] > 1 and inputs > 1:
        return _GROUPED
    if max(outputs, inputs) <= _FEW_CHANNELS:
        return _SMALL
    return _NARROWING if outputs * 2 <= inputs and width > 1 else _OTHER


def kernels(steps: Sequence[Step]) -> Counter[Kernel]:
    """The kernels of a model's operators, in the order in which these ran, with how often each starts."""
    ran = [step for step in steps if not step.call.outputs or any(out.elements for out in step.call.outputs)]
    alone = [kernel(step.call) for step in ran]
    fused = [one.kind in _FUSED and step.call.op not in _NEVER for one, step in zip(alone, ran, strict=True)]
    found = Counter(_library(one, step.call) for one, step, inside in zip(alone, ran, fused, strict=True) if not inside)
    readers: dict[int, set[int]] = {}
    for number, step in enumerate(ran):
        for value in step.reads:
            readers.setdefault(value, set()).add(number)
    for members in _groups(ran, alone, fused):
        reads, writes = _through([ran[number] for number in members], set(members), readers)
        if not writes and members[-1] != len(ran) - 1:
            continue  # nobody reads it, so that it is not computed
        kinds = {alone[number].kind for number in members}
        kind = next(kind for kind in _FUSED if kind in kinds)
        operands = [*reads, *(writes or ran[-1].call.outputs)]
        moved = sum(one.bytes for one in operands if one.grows) / BATCH
        fixed = float(sum(one.bytes for one in operands if not one.grows))
        found[Kernel(_PLAIN.get(kind, kind), moved, fixed)] += 1
    return found


def _library(one: Kernel, call: Call) -> Kernel:
    """A kernel that is not inductor's: of a convolution without its bias, copied where it is not channels-last."""
    if call.op != "convolution":
        return one
    as_it_is = one.kind.startswith("depthwise") or is_channels_last(call.inputs[0])
    return one._replace(beside=0.0 if as_it_is else one.moved)


def _groups(ran: Sequence[Step], alone: Sequence[Kernel], fused: Sequence[bool]) -> list[list[int]]:
    """Operators that become one kernel, by their numbers: those that data connects on the same level.

    A level ends at a kernel of a library, and where a reduction's result is spread over what was reduced, which has to
    be read again.
    """
    maker: dict[int, int] = {}
    level, of = [0] * len(ran), list(range(len(ran)))
    reduced = [False] * len(ran)  # what a reduction gave, or was made of that alone

    def first(number: int) -> int:
        while of[number] != number:
            of[number] = of[of[number]]
            number = of[number]
        return number

    for number, step in enumerate(ran):
        makers = [maker[value] for value in step.reads if value in maker]
        for made in makers:
            spread = fused[number] and reduced[made] and _largest(step) > _largest(ran[made])
            level[number] = max(level[number], level[made] + spread)
        reduced[number] = fused[number] and (
            alone[number].kind == "reduction" or any(reduced[made] and level[made] == level[number] for made in makers)
        )
        level[number] += not fused[number]
        if fused[number]:
            for made in makers:
                if fused[made] and level[made] == level[number]:
                    of[first(number)] = first(made)
        maker.update(dict.fromkeys(step.writes, number))
    members: dict[int, list[int]] = {}
    for number in range(len(ran)):
        if fused[number]:
            members.setdefault(first(number), []).append(number)
    return list(members.values())


def _largest(step: Step) -> int:
    return max((out.elements for out in step.call.outputs), default=0)


def _through(
    steps: Sequence[Step], inside: set[int], readers: dict[int, set[int]]
) -> tuple[list[Operand], list[Operand]]:
    """What a fused kernel reads from memory, and what it writes for others to read."""
    made = {value for step in steps for value in step.writes}
    reads: dict[tuple[object, ...], Operand] = {}
    writes: dict[int, Operand] = {}
    for step in steps:
        for value, operand in zip(step.reads, step.call.inputs, strict=True):
            if value not in made:
                reads[value, operand.shape, operand.stride] = operand
        for value, operand in zip(step.writes, step.call.outputs, strict=True):
            if readers.get(value, set()) - inside:
                writes[value] = operand
    return list(reads.values()), list(writes.values())


__all__ = ["kernels", "layout"]
