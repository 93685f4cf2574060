"""What the first warp of the first program does, from its first cycle to its last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitbench.audit.run import Audited
from vitbench.audit.sass import pipes
from vitbench.audit.sass.listing import Instruction

LANES = ("loads", "products", "special", "shared memory", "stores", "arithmetic", "waiting")
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class Timeline:
    """Attributes:
    cycles: of the program, `cycles` / columns each.
    counts: by lane, instructions issued; of the lane "waiting" the cycles in which nothing could be issued.
    columns: by lane, how busy each column is: for "waiting" the share of its cycles, else over the lane's busiest.
    """

    cycles: float
    counts: dict[str, int]
    columns: dict[str, list[float]]


def timeline(item: Audited, columns: int = 72) -> Timeline | None:
    """What a warp issues in each column of time; None for a launch that failed. Lanes that stay empty are left out."""
    profile, simulated = item.profile, item.simulated
    if profile is None or simulated is None:
        return None
    code = profile.graph.listing.instructions
    when, path = simulated.first_issued, simulated.first_path
    at = np.where(path >= 0, path, -1 - path)
    start, end = float(when[0]), float(when[-1]) + 1
    edges = np.linspace(start, end, columns + 1)
    lanes = np.array([LANES.index(_lane(i)) for i in code])[at]
    ran = path >= 0
    found: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for number, lane in enumerate(LANES[:-1]):
        issued, _ = np.histogram(when[(lanes == number) & ran], edges)
        if issued.any():
            found[lane], counts[lane] = (issued / issued.max()).tolist(), int(issued.sum())
    stalls = np.array([max(1, i.control.stall) for i in code])[at]
    begins, ends = when[:-1] + stalls[:-1], when[1:]
    # Of each gap the part that falls into each column.
    until = np.array([np.minimum(np.maximum(edge - begins, 0), np.maximum(ends - begins, 0)).sum() for edge in edges])
    if until[-1] > 0:
        found["waiting"] = np.minimum(1.0, np.diff(until) * columns / (end - start)).tolist()
        counts["waiting"] = round(float(until[-1]))
    return Timeline(end - start, counts, found)


def text(found: Timeline) -> list[str]:
    """The timeline in characters, the busier the darker."""
    width = len(next(iter(found.columns.values())))
    each = found.cycles / width
    lines = [f"timeline of the first program's first warp, {found.cycles:,.0f} cycles, a column {each:,.0f} of them:"]
    for lane, busy in found.columns.items():
        shades = "".join(_SHADES[int(np.ceil(share * (len(_SHADES) - 1)))] for share in busy)
        lines.append(f"  {lane:14} |{shades}| {found.counts[lane]:,}{' cycles' if lane == 'waiting' else ''}")
    return lines


def _lane(i: Instruction) -> str:
    if pipes.is_matrix(i):
        return "products"
    if pipes.is_global_load(i):
        return "loads"
    if pipes.is_global_store(i):
        return "stores"
    pipe = pipes.use(i, 0).pipe
    return {"lsu": "shared memory", "sfu": "special"}.get(pipe, "arithmetic")
