"""Stage 3: kernels against all peers, interleaved; the rows of kernels.csv are `vitbench.kernel_bench`'s."""

from __future__ import annotations

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vitbench.certify.stage import FAIL, NOT_RUN, Context, Line, Stage, verdict
from vitbench.console import console
from vitbench.process import Process

_BENCH = "vitbench.kernel_bench"
#: Of the rehearsal on a CPU: one case, without gradients.
_SMALL = ("--kernel", "depthwise_conv2d/cmt_s-a-lpu-b64-nhwc-small/fwd/fp32", "--max-time", "0.2")
#: How much slower than a peer counts as not slower: the noise of a kernel's median.
_TOLERANCE = 1.02
FUSED, EAGER = "fused", "eager"  # other layouts of ours are called fused-...

Row = dict[str, str]


def path(context: Context) -> Path:
    return context.out / "kernels.csv"


def _run(context: Context, deadline: float) -> bool:
    known = -1
    # Again where the last row broke the device: a new process measures the rest.
    while known < len(rows := read(context)) and (known < 0 or rows[-1].get("status") == "crashed"):
        known = len(rows)
        _bench(context, deadline - time.monotonic())
    return False


def _bench(context: Context, seconds: float) -> None:
    # A process of its own: what breaks the device, or still compiles when the time is up, ends with it.
    chosen = _SMALL if context.small else ("--dtype", "bf16")
    command = [sys.executable, "-m", _BENCH, "--device", context.device, "--out", str(path(context)), *chosen]
    with Process([*command, "--budget", f"{seconds:.1f}"]) as process:
        code = process.wait(seconds)
        if code is None:
            console().print("the time is up", soft_wrap=True)
        elif code in (0, 1) and read(context):  # 1: some row is a failure, which is judged by itself
            _failure(context).unlink(missing_ok=True)
        else:
            _failure(context).write_text(process.how_it_ended() + "\n", encoding="utf-8")


def _failure(context: Context) -> Path:
    """Where it stands how the process failed; not there once it has not."""
    return context.out / "kernels.failure.txt"


def read(context: Context) -> list[Row]:
    """The rows: kernel, case, pass, dtype, impl, status where there is one, median_us, floor_share, ..."""
    if not path(context).exists():
        return []
    with path(context).open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def timed(rows: list[Row]) -> Iterator[tuple[Row, float]]:
    """Those that were measured, with their time in microseconds."""
    for row in rows:
        if row.get("status", "ok") == "ok" and row.get("median_us"):
            yield row, float(row["median_us"])


def _judge(context: Context) -> list[Line]:
    rows = read(context)
    lines = []
    if _failure(context).exists():
        how = _failure(context).read_text(encoding="utf-8").strip()
        lines.append(Line("kernels: all that was begun was measured", FAIL, how))
    if not rows:
        return lines or [Line("kernels", NOT_RUN, "not reached yet")]
    # On a GPU a kernel of ours that refuses its own case is broken.
    bad = ("incorrect", "error", "crashed", *(() if context.small else ("unsupported",)))
    wrong = [row for row in rows if row["impl"].startswith(FUSED) and row.get("status") in bad]
    lines += [Line("/".join(_key(row)), FAIL, f"{row['status']}: {row.get('reason', '')}") for row in wrong]
    of_pass: dict[str, dict[tuple[str, ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    shares: dict[str, list[float]] = defaultdict(list)
    for row, median in timed(rows):
        name = f"{row['kernel']} {row['pass']}"
        of_pass[name][_key(row)][row["impl"]] = median
        if row["impl"] == FUSED and row.get("floor_share"):
            shares[name].append(float(row["floor_share"]))
    if context.small:
        count = sum(len(cases) for cases in of_pass.values())
        return [*lines, Line("kernels", NOT_RUN, f"{count} cases rehearsed; speed needs an NVIDIA GPU")]
    return lines + [line for name in of_pass for line in _judge_pass(name, of_pass[name], shares[name])]


def _key(row: Row) -> tuple[str, ...]:
    return row["kernel"], row["case"], row["pass"], row["dtype"]


def _judge_pass(name: str, cases: dict[tuple[str, ...], dict[str, float]], shares: list[float]) -> Iterator[Line]:
    floor = f"; share of the floor {min(shares):.0%} to {max(shares):.0%}" if shares else ""
    yield _judge_against(f"{name}: at least as fast as eager", cases, EAGER, floor)
    yield _judge_against(f"{name}: not slower than the best peer", cases)


def _judge_against(what: str, cases: dict[tuple[str, ...], dict[str, float]], only: str = "", extra: str = "") -> Line:
    found: list[tuple[float, str, str]] = []
    for key, times in cases.items():
        peers = {impl: us for impl, us in times.items() if not impl.startswith(FUSED) and only in ("", impl)}
        if FUSED in times and peers:
            best = min(peers, key=peers.__getitem__)
            found.append((peers[best] / times[FUSED], best, "/".join(key[1:])))
    if not found:
        return Line(what, NOT_RUN, "no case has both times")
    slower = [one for one in found if one[0] * _TOLERANCE < 1]
    ratio, peer, case = min(found)
    told = f"{len(found) - len(slower)} of {len(found)} cases; least {ratio:.2f}x of {peer} at {case}{extra}"
    return Line(what, verdict(not slower), told)


STAGE = Stage("kernels", "kernels against eager and the best peers", 25, _run, _judge)
__all__ = ["EAGER", "FUSED", "STAGE", "path", "read", "timed"]
