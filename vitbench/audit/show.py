"""The hot loop of one launch, instruction by instruction, what costs most, and what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitbench.audit.model.chips import chip_of
from vitbench.audit.model.profile import Profile, tensor_tile
from vitbench.audit.records import Row
from vitbench.audit.run import Audited
from vitbench.audit.sass import pipes
from vitbench.audit.timeline import text, timeline
from vitbench.columns import Column


def table(rows: Sequence[Row]) -> list[Column]:
    """One row per launch with the numbers a kernel author tunes by; a failed one has its reason for a note."""

    def of(value: Callable[[Row], object]) -> list[object]:
        return [value(row) if row.status == "ok" else None for row in rows]

    def digits(count: int) -> Callable[[Any], str]:
        return lambda value: "" if value is None else f"{value:.{count}f}"

    failed = [f"{row.status}: {row.reason}" if row.status != "ok" else row.reason for row in rows]
    return [
        Column("launch", [row.launch_id for row in rows], "key"),
        Column("arch", [row.arch for row in rows], "word"),
        Column("model", of(lambda r: r.modelled_us), show=digits(2)),
        Column("low", of(lambda r: r.modelled_low_us or 0), show=digits(2)),
        Column("high", of(lambda r: r.modelled_high_us or 0), show=digits(2)),
        Column("floor", of(lambda r: r.floor_us), show=digits(2)),
        Column("share", of(lambda r: f"{r.floor_share:.1%}")),
        Column("regs", of(lambda r: r.registers)),
        Column("spill", of(lambda r: r.spill_bytes)),
        Column("smem", of(lambda r: r.shared_bytes)),
        Column("occ", of(lambda r: r.occupancy), show=digits(2)),
        Column("load", of(lambda r: r.narrowest_hot_load_bytes or "-")),
        Column("slots/el", of(lambda r: r.issue_slots_per_element), show=digits(3)),
        Column("sfu/el", of(lambda r: r.sfu_per_element), show=digits(3)),
        Column("busy", of(lambda r: r.overlapped_us), show=digits(2)),
        Column("matrix", of(lambda r: r.matrix_instruction or "-"), "text"),
        Column("bound", of(lambda r: r.bound_by), "text"),
        Column("note", failed, "note"),
    ]


def summary(item: Audited) -> list[str]:
    """Resources, counts and times; of a launch that failed, why."""
    r, counted = item.row, item.profile
    lines = [f"{item.launch.id} {r.arch} triton {r.triton}"]
    if counted is None:
        return [*lines, f"{r.status}: {r.reason}"]
    limit = f"{r.occupancy:.0%} occupancy, limited by {r.occupancy_limit}"
    lines += [
        f"registers {r.registers}  stack {r.spill_bytes} B  shared {r.shared_bytes} B  {limit}",
        f"grid {item.launch.grid}  programs {r.programs}  warps {r.num_warps}  stages {r.num_stages}",
        f"issue slots per element {r.issue_slots_per_element:.3f}  special functions per element "
        f"{r.sfu_per_element:.3f}  L2 bytes / unavoidable {r.bytes_ratio:.3f}",
        "time us: "
        + "  ".join(
            f"{name} {getattr(r, name + '_us'):.2f}"
            for name in ("issue", "sfu", "matrix", "lsu", "fp32", "alu", "l2", "bytes", "overlapped", "floor")
        )
        + f"  bound by {r.bound_by}",
        f"simulated on the {r.card}: {r.modelled_us:.2f} us ({_interval(r)} with latencies 25 % shorter and longer), "
        f"{r.floor_share:.0%} of it the floor; a launch adds {r.launch_us:.1f} us",
    ]
    if r.reason:
        lines.append(f"note: {r.reason}")
    if item.simulated:
        waits = "  ".join(f"{name} {share:.0%}" for name, share in item.simulated.shares.items() if share > 0.005)
        lines.append(f"cycles of warps: {waits}; {item.simulated.issued_per_cycle:.2f} instructions a cycle")
        lines.append(f"eligible warps of a scheduler: {item.simulated.eligible_per_cycle:.2f} a cycle")
    return lines


def show(item: Audited) -> str:
    """Resources, loops, top costs, advice, a timeline and the listing of the hot loop."""
    lines, counted = summary(item), item.profile
    if counted is None:
        return "\n".join(lines)
    lines += ["", "loops (machine code, hottest first): address, depth, instructions, trips per warp, share of issue"]
    for loop in counted.loops:
        lines.append(
            f"  {loop.header_address:#06x}  depth {loop.depth}  {loop.instructions:5} instructions  "
            f"{loop.trips:10.2f} trips  {loop.issue_share:6.1%}"
        )
    inside = sum(loop.issue_share for loop in counted.loops)
    lines.append(f"  outside every loop: {1 - inside:6.1%}")
    lines += ["", "top costs (whole launch): instruction, share of issue, slots per element"]
    for name, times in sorted(counted.by_name.items(), key=lambda found: -found[1])[:16]:
        share = times * 32 / item.launch.elements
        lines.append(f"  {name:12} {times / counted.issued:6.1%} {share:9.3f}")
    lines += ["", "global loads by width: " + _widths(counted), "", "what to try:"]
    lines += [f"  - {hint}" for hint in advice(item)] or ["  - nothing stands out"]
    if found := timeline(item):
        lines += ["", *text(found)]
    lines += ["", *_listing(item)]
    return "\n".join(lines)


def _interval(row: Row) -> str:
    return f"{row.modelled_low_us:.2f} to {row.modelled_high_us:.2f}"


def _widths(counted: Profile) -> str:
    return "  ".join(f"{width} B x {times:.0f}" for width, times in sorted(counted.widths.items())) or "none"


def advice(item: Audited) -> list[str]:
    """What the counts suggest, most telling first."""
    r, counted = item.row, item.profile
    if counted is None:
        return []
    names, total = counted.by_name, counted.issued
    hints = []
    if r.spill_bytes:
        hints.append(f"{r.spill_bytes} bytes of stack per thread: smaller tiles, more warps or fewer live values")
    if item.launch.matrix_flops and not r.matrix_instruction:
        hints.append("no matrix instruction although the launch multiplies matrices: check tl.dot shapes and dtypes")
    if item.arch == 90 and r.matrix_instruction == "HMMA":
        hints.append("HMMA on sm_90: HGMMA needs M >= 64 and 4 warps per 64 rows")
    if r.narrowest_hot_load_bytes is not None and r.narrowest_hot_load_bytes < 16:
        hints.append(
            f"{r.narrowest_hot_load_bytes}-byte global loads in the hot loop: make the last stride 1, strides and "
            "sizes multiples of 16 (or hint it), and masks constant over groups of 16 bytes"
        )
    if r.bytes_ratio > 1.5:
        hints.append(f"L2 moves {r.bytes_ratio:.1f} times the unavoidable bytes: tensors read again by other programs")
    if counted.special and r.sfu_per_element > 1.3 * max(1.0, item.launch.special / item.launch.elements):
        hints.append(f"{r.sfu_per_element:.2f} special functions per element: padding, rescaling or divisions")
    conversions = sum(names[name] for name in ("F2FP", "PRMT", "F2F", "I2F", "F2I"))
    if conversions > 0.12 * total:
        hints.append(f"{conversions / total:.0%} of issue converts or repacks types")
    moves = names["MOV"] + names["SEL"] + names["FSEL"]
    if moves > 0.12 * total:
        hints.append(f"{moves / total:.0%} of issue moves or selects: mask in the last trip only")
    shuffles = names["SHFL"]
    if shuffles > 0.06 * total:
        hints.append(f"{shuffles / total:.0%} of issue shuffles: reduce along a thread's own values first")
    hints += _waiting(item)
    integer = sum(names[name] for name in ("IMAD", "IADD3", "LEA", "LOP3", "SHF", "ISETP", "VIADD"))
    if integer > 0.35 * total:
        hints.append(f"{integer / total:.0%} of issue is integer and address work: hoist it out or step pointers")
    inside = sum(loop.issue_share for loop in counted.loops)
    if counted.loops and inside < 0.7:
        hints.append(f"{1 - inside:.0%} of issue is outside the loops: more work per program")
    if r.programs < chip_of(item.arch).multiprocessors:
        hints.append(f"{r.programs} programs leave multiprocessors idle: split the work")
    return hints


_REMEDIES = {
    "long scoreboard": (0.25, "loads: issue them earlier (more stages), or keep more warps resident"),
    "short scoreboard": (0.2, "shared memory or special functions: fewer of them, or more warps"),
    "barrier": (0.2, "barriers: fewer warps a program, or less work between them that only some warps do"),
    "math pipe throttle": (0.25, "arithmetic units: fewer instructions, wider ones, or another unit"),
    "MIO throttle": (0.15, "the load/store queue: wider loads, fewer shuffles"),
    "product": (0.3, "matrix products: start the next one before waiting for the last"),
}


def _waiting(item: Audited) -> list[str]:
    """What warps wait for most."""
    if item.simulated is None:
        return []
    return [
        f"{share:.0%} of warp cycles wait for {_REMEDIES[reason][1]}"
        for reason, share in item.simulated.shares.items()
        if reason in _REMEDIES and share > _REMEDIES[reason][0]
    ]


@dataclass(frozen=True)
class Line:
    """An instruction of the hot loop: its pipe and how long it keeps that busy, runs per warp, the share of all warp
    cycles that were spent before it and what for."""

    address: int
    pipe: str
    cycles: float
    runs: float
    share: float
    reason: str
    text: str


def hot(item: Audited) -> tuple[str, list[Line]]:
    """The hottest loop, or the whole kernel where there is none, as a title and lines; of one that failed none."""
    counted = item.profile
    if counted is None:
        return "no machine code", []
    graph = counted.graph
    if counted.loops:
        blocks = sorted(counted.loops[0].blocks)
        title = f"hottest loop at {counted.loops[0].header_address:#x}"
    else:
        blocks = [b.number for b in graph.blocks if counted.executions[b.number]]
        title = "no loop; the whole kernel"
    warps = item.launch.programs * item.row.num_warps
    lines = []
    for number in blocks:
        times = counted.executions[number] / warps
        if not times:
            continue
        for i in graph.instructions(number):
            used = pipes.use(i, item.arch, tensor_tile(graph, i))
            share, why = item.simulated.waited(i.index) if item.simulated else (0.0, "")
            reason = why if share >= 0.001 else ""
            lines.append(Line(i.address, used.pipe, used.cycles, times, share, reason, i.text))
    return title, lines


def _listing(item: Audited) -> list[str]:
    title, lines = hot(item)
    mix = "  ".join(f"{pipe} {count}" for pipe, count in Counter(line.pipe for line in lines).most_common())
    return [
        f"{title}: address, pipe, cycles, runs per warp, share of warp cycles before it, mostly",
        f"  instructions by pipe: {mix}",
        *(
            f"  {x.address:#06x}  {x.pipe:8} {x.cycles:4.0f} {x.runs:10.2f} {x.share:6.1%} {x.reason:18}  {x.text}"
            for x in lines
        ),
    ]
