"""Ours beside kernels as people write them, at the same cases and on the same card, as simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.audit import registry
from vitbench.audit.peers.launches import peers
from vitbench.audit.records import Row
from vitbench.audit.run import audit_launches
from vitbench.columns import Column
from vitbench.errors import InputError

_OURS = "bias_attention/*/fwd*/bf16,depthwise_conv2d/*-nhwc/fwd/bf16"


@dataclass(frozen=True)
class Compared:
    """A case: the sum of our forward launches, and of each peer that runs the fastest of what was tried, in us.

    `faults` are launches of ours that have no time.
    """

    case: str
    arch: str
    ours_us: float
    peers_us: dict[str, float]
    tried: dict[str, str]
    faults: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Of the best peer's time to ours: above 1 ours is ahead."""
        return min(self.peers_us.values(), default=float("inf")) / self.ours_us if self.ours_us else 0.0


def compare(
    arch: int,
    pattern: str,
    processes: int | None = None,
    done: Callable[[int, int], None] | None = None,
    card: str = "",
    cache: Path | None = None,
) -> list[Compared]:
    """Every case whose forward launch matches and that has peers.

    Raises: InputError when none does.
    """
    rivals = peers(arch)
    own = registry.launches(["vitkernels"], arch, _OURS)
    asked = {launch.id for launch in registry.launches(["vitkernels"], arch, pattern)}
    cases = dict.fromkeys(f"{launch.op}/{launch.case}" for launch in own if launch.id in asked)
    cases = {name: None for name in cases if name in rivals}
    if not cases:
        known = _OURS.replace(",", ", ")
        raise InputError(f"no forward pass that has peers matches {pattern!r}; they are of {known}")
    chosen = [launch for launch in own if f"{launch.op}/{launch.case}" in cases]
    chosen += [launch for name in cases for launch in rivals[name]]
    rows = [item.row for item in audit_launches([(x, arch) for x in chosen], processes, cache, done=done, card=card)]
    return [_compared(name, f"sm_{arch}", rows, {x.id for x in rivals[name]}) for name in cases]


def _compared(name: str, arch: str, rows: Sequence[Row], rivals: set[str]) -> Compared:
    ours = [row for row in rows if f"{row.kernel}/{row.case}" == name]
    best: dict[str, Row] = {}
    for row in rows:
        if row.launch_id in rivals and row.status == "ok":
            before = best.get(row.kernel)
            best[row.kernel] = row if before is None or row.modelled_us < before.modelled_us else before
    return Compared(
        name, arch, sum(row.modelled_us for row in ours), {peer: row.modelled_us for peer, row in best.items()},
        {peer: row.case.partition("+")[2] for peer, row in best.items()},
        tuple(f"{row.launch_id}: {row.reason}" for row in ours if row.status != "ok"),
    )  # fmt: skip


def names(arch: int) -> list[str]:
    """Of the peers."""
    return list(dict.fromkeys(launch.op for launches in peers(arch).values() for launch in launches))


def table(found: Sequence[Compared], named: Sequence[str] = ()) -> list[Column]:
    """A line a case: ours, each peer of those found or named, how far ahead."""

    def digits(value: object) -> str:
        return "" if value is None else f"{value:.2f}"

    of_any = dict.fromkeys([*(peer for case in found for peer in case.peers_us), *named])
    peers_us = [Column(f"{peer} us", [case.peers_us.get(peer) for case in found], show=digits) for peer in of_any]
    best = [min(case.peers_us, key=lambda peer: case.peers_us[peer], default="") for case in found]
    tiles = [f"{peer} {case.tried.get(peer, '')}" for case, peer in zip(found, best, strict=True)]
    return [
        Column("case", [case.case for case in found], "key"),
        Column("arch", [case.arch for case in found], "word"),
        Column("ours us", [case.ours_us for case in found], show=digits),
        *peers_us,
        Column("ratio", [case.ratio for case in found], show=digits),
        Column("best peer", tiles, "text"),
    ]


def verdict(found: Sequence[Compared]) -> str:
    """Where ours is not ahead."""
    behind = sorted((case for case in found if case.ratio <= 1 or case.faults), key=lambda case: case.ratio)
    told = ", ".join(f"{case.case} {case.arch} ({case.ratio:.2f})" for case in behind)
    ahead = f"ahead of every peer at {len(found) - len(behind)} of {len(found)} cases"
    return f"{ahead}; behind at {told}" if behind else ahead
