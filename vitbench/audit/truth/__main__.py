"""Models every published time and writes it beside the measured one: `make audit-truth`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitbench.audit.truth import times
from vitbench.audit.truth.points import FITTED, published
from vitbench.audit.truth.times import Time
from vitbench.errors import InputError
from vitbench.report.curves import INSTALL, plotting_missing, save


def farthest(found: Sequence[Time], count: int = 15) -> str:
    """The points that are farthest off, a line each."""
    worst = sorted((time for time in found if time.use != FITTED), key=lambda time: -abs(time.error))[:count]
    lines = [f"{'ratio':>5} {'measured us':>12}  farthest off"]
    lines += [f"{time.ratio:5.2f} {time.measured_us:12.1f}  {time.kernel}, {time.shape}, {time.card}" for time in worst]
    return "\n".join(lines)


def chart(found: Sequence[Time]) -> Any:
    """Measured against modelled time with what launching costs, both logarithmic, and the line where they are equal.

    Raises: InputError when the plotting packages are missing.
    """
    if plotting_missing():
        raise InputError(f"pictures need altair and vl-convert: {INSTALL}")
    import altair as alt
    import pandas as pd

    points = pd.DataFrame(
        {
            "measured": time.measured_us,
            "modelled": time.modelled_us + time.launch_us,
            "low": time.modelled_low_us + time.launch_us,
            "high": time.modelled_high_us + time.launch_us,
            "card": time.card,
            "use": time.use,
            "bound by": time.bound,
        }
        for time in found
    )
    ends = [points["measured"].min() / 1.3, points["measured"].max() * 1.3]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    x = alt.X("measured:Q", scale=scale, title="measured, us")
    y = alt.Y("modelled:Q", scale=scale, title="modelled, launch included, us")
    equal = alt.Chart(pd.DataFrame({"measured": ends, "modelled": ends}), width=460, height=460).mark_line(
        color="#999", strokeWidth=1
    )
    ranges = alt.Chart(points).mark_rule().encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color="card:N")
    dots = alt.Chart(points).mark_point(size=45, opacity=0.9).encode(
        x=x, y=y, color=alt.Color("card:N", title="card"), shape=alt.Shape("bound by:N", title="bound by"),
        fill=alt.condition("datum.use == 'fitted'", alt.Fill("card:N", legend=None), alt.value("transparent")),
    )  # fmt: skip
    all_points, work = times.judge(found), times.judge(times.bounded_by_work(found))
    title = [
        f"{all_points.points} published kernel times: mean absolute log error {all_points.error:.1%},",
        f"rank correlation by time over floor {all_points.correlation:.2f}",
        f"bound by compute or latency: {work.points}, {work.error:.1%}; filled: constants were fitted to it",
    ]
    return (equal.encode(x=x, y=y) + ranges + dots).properties(title=title)


def main(folder: Path) -> int:
    """Writes kernel-times.csv and the picture.

    Raises: InputError.
    """
    found = times.model(
        published(), done=lambda n, total: print(f"{n}/{total}", file=sys.stderr) if not n % 10 else None
    )
    folder.mkdir(parents=True, exist_ok=True)
    times.TABLE.write(folder / "kernel-times.csv", found)
    print(f"wrote {folder / 'kernel-times.csv'}")
    for written in save(chart(found), folder / "kernel-times"):
        print(f"wrote {written}")
    print(times.summary(found))
    print()
    print(farthest(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except InputError as problem:
        sys.exit(f"vitbench: {problem}")
