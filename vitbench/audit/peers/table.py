"""Ours beside kernels as people write them, at the same cases and on the same card, as simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitkernels import Launch

from vitbench import markdown
from vitbench.audit import registry
from vitbench.audit.peers.launches import Peer, peers
from vitbench.audit.records import Row
from vitbench.audit.run import audit_launches
from vitbench.columns import Column
from vitbench.errors import InputError
from vitbench.results.table import Table

#: Of a convolution's backward pass what the direct kernels do too: without the activation's, and without the sum of
#: the parts of dw, which both leave to torch.
_OURS = (
    "bias_attention/*/bf16,bias_attention/*/bwd_sum_dbias/fp32,"
    "depthwise_conv2d/*-nhwc/fwd/bf16,depthwise_conv2d/*-nhwc/bwd_dx/bf16,depthwise_conv2d/*-nhwc/bwd_dw/bf16"
)


@dataclass(frozen=True)
class Compared:
    """A case and pass: the sum of our launches, and of each peer that runs the fastest of what was tried, in us.

    `floor_us` is the least that any of them could take, `tried` the tiles of the fastest peer; `faults` are launches of
    ours that have no time.
    """

    case: str
    arch: str
    card: str
    triton: str
    ours_us: float
    textbook_us: float | None
    flex_us: float | None
    direct_us: float | None
    floor_us: float
    tried: str
    faults: str = ""

    @property
    def peers_us(self) -> dict[str, float]:
        times = {"textbook": self.textbook_us, "flex": self.flex_us, "direct": self.direct_us}
        return {name: us for name, us in times.items() if us is not None}

    @property
    def ratio(self) -> float:
        """Of the best peer's time to ours: above 1 ours is ahead."""
        return min(self.peers_us.values(), default=float("inf")) / self.ours_us if self.ours_us else 0.0

    @property
    def behind(self) -> bool:
        return self.ratio <= 1 or bool(self.faults)


TABLE = Table(Compared, "a comparison with peers", number=lambda value: f"{value:.5g}")


def compare(
    arch: int,
    pattern: str,
    processes: int | None = None,
    done: Callable[[int, int], None] | None = None,
    card: str = "",
    cache: Path | None = None,
) -> list[Compared]:
    """Every case and pass a launch of which matches and that has peers.

    Raises: InputError when none does.
    """
    rivals = peers(arch)
    own: defaultdict[str, list[Launch]] = defaultdict(list)
    for launch in registry.launches(["vitkernels"], arch, _OURS):
        own[_case(launch)].append(launch)
    asked = {_case(launch) for launch in registry.launches(["vitkernels"], arch, pattern)}
    cases = [name for name in own if name in rivals and name in asked]
    if not cases:
        raise InputError(f"no pass that has peers matches {pattern!r}; they are of {_OURS.replace(',', ', ')}")
    chosen = {x.id: x for name in cases for x in own[name]}
    chosen |= {x.id: x for name in cases for peer in rivals[name] for x in peer.launches}
    audited = audit_launches([(x, arch) for x in chosen.values()], processes, cache, done=done, card=card)
    rows = {item.launch.id: item.row for item in audited}
    return [_compared(name, [rows[x.id] for x in own[name]], rivals[name], rows) for name in cases]


def _case(launch: Launch) -> str:
    """Its operation and case, and whether it is of the forward or of the backward pass."""
    backward = launch.pass_name.startswith("bwd")
    return f"{launch.op}/{launch.case}/{'bwd' if backward else 'fwd'}"


def _compared(name: str, ours: Sequence[Row], rivals: Sequence[Peer], rows: Mapping[str, Row]) -> Compared:
    best: dict[str, tuple[float, str]] = {}
    floors = [sum(row.floor_us for row in ours)]
    for peer in rivals:
        theirs = [rows[launch.id] for launch in peer.launches]
        if all(row.status == "ok" for row in theirs):
            us = sum(row.modelled_us for row in theirs)
            best[peer.name] = min(best.get(peer.name, (us, peer.tiles)), (us, peer.tiles))
            floors.append(sum(row.floor_us for row in theirs))
    textbook, flex, direct = (best[who][0] if who in best else None for who in ("textbook", "flex", "direct"))
    return Compared(
        case=name, arch=ours[0].arch, card=ours[0].card, triton=ours[0].triton,
        ours_us=sum(row.modelled_us for row in ours), textbook_us=textbook, flex_us=flex, direct_us=direct,
        floor_us=min(floors), tried=" ".join((who := min(best, key=lambda x: best[x]), best[who][1])) if best else "",
        faults="; ".join(f"{row.launch_id}: {row.reason}" for row in ours if row.status != "ok"),
    )  # fmt: skip


def _digits(value: object) -> str:
    return "" if value is None else f"{value:.2f}"


def table(found: Sequence[Compared]) -> list[Column]:
    """A line a case and pass: ours, each peer, the floor, how far ahead."""
    return [
        Column("case", [case.case for case in found], "key"),
        Column("arch", [case.arch for case in found], "word"),
        Column("ours us", [case.ours_us for case in found], show=_digits),
        Column("textbook us", [case.textbook_us for case in found], show=_digits),
        Column("flex us", [case.flex_us for case in found], show=_digits),
        Column("direct us", [case.direct_us for case in found], show=_digits),
        Column("floor us", [case.floor_us for case in found], show=_digits),
        Column("ratio", [case.ratio for case in found], show=_digits),
        Column("best peer", [case.tried for case in found], "text"),
    ]


def page(found: Sequence[Compared]) -> str:
    """The same as Markdown, with a last column where ours is not ahead, and the verdict below it."""
    lines = []
    for x in found:
        times = x.ours_us, x.textbook_us, x.flex_us, x.direct_us, x.floor_us, x.ratio
        lines.append([x.case, *map(_digits, times), x.tried, "not ahead" if x.behind else ""])
    head = ("case and pass", "ours us", "textbook", "flex", "direct", "floor", "best peer / ours", "its tiles", "")
    first = found[0]
    told = f"Modelled for the {first.card} ({first.arch}, Triton {first.triton}): {verdict(found)}."
    return "\n".join([*markdown.table(head, lines), "", told])


def verdict(found: Sequence[Compared]) -> str:
    """Where ours is not ahead."""
    behind = sorted((case for case in found if case.behind), key=lambda case: case.ratio)
    told = ", ".join(f"{case.case} {case.arch} ({case.ratio:.2f})" for case in behind)
    ahead = f"ahead of every peer at {len(found) - len(behind)} of {len(found)} cases"
    return f"{ahead}; behind at {told}" if behind else ahead
