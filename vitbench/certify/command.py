"""What `vitbench certify` does: the stages that were asked for, each within its share of the time, then the summary."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from vitbench.certify import summary
from vitbench.certify.options import CertifyOptions
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Stage
from vitbench.certify.stages import STAGES, parse_stages
from vitbench.console import console
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.results.row import changes


def run(given: CertifyOptions) -> int:
    """Runs stages, prints and writes the summary; 0 nothing failed, 1 something did, 130 interrupted.

    Raises: InputError on an unknown stage, a budget that is not positive, a device that is not there, or a folder
        with the results of another environment.
    """
    if not 0 < given.budget < float("inf"):
        raise InputError(f"--budget is a number of seconds above zero, got {given.budget:g}")
    chosen = parse_stages(given.stage)
    device = devices.check_device(given.device) if given.device else devices.default_device()
    if ":" in device:
        raise InputError(f"certify measures on the first GPU, not on {device}: choose one with CUDA_VISIBLE_DEVICES")
    deadline = time.monotonic() + given.budget
    about = devices.environment(device)
    environment = dataclasses.asdict(about)
    out = given.out or Path("results") / devices.slug(about.device_name) / "certify"
    context = Context(out, device)
    _claim(out, environment)
    interrupted = _run_stages(chosen, context, deadline)
    judged = {one: one.judge(context) for one in STAGES}
    path = summary.write(judged, environment, out)
    verdicts = [line.verdict for lines in judged.values() for line in lines]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in (PASS, FAIL, NOT_RUN))
    console().print(f"{counts}; wrote {path}", soft_wrap=True)
    return 130 if interrupted else int(any(line.verdict == FAIL for one in chosen for line in judged[one]))


def _run_stages(chosen: Sequence[Stage], context: Context, deadline: float) -> bool:
    """Whether the user interrupted. What a stage leaves of its time, the next ones share."""
    printer = console()
    for position, stage in enumerate(chosen):
        now = time.monotonic()
        left = deadline - now
        if left <= 0:
            printer.print(f"{stage.name}: not run, the budget is used up; the same command goes on from here")
            continue
        own = left * stage.share / sum(other.share for other in chosen[position:])
        printer.print(f"{stage.name}: {stage.title} (at most {own:.0f} s)")
        try:
            if stage.run(context, now + own):
                return True
        except KeyboardInterrupt:
            return True
    return False


def _claim(out: Path, environment: dict[str, object]) -> None:
    """Notes where the folder's results come from; what is there already must come from the same environment.

    Raises: InputError.
    """
    path = out / summary.ENVIRONMENT
    now = {name: "" if value is None else str(value) for name, value in environment.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open(newline="", encoding="utf-8") as handle:
                before = next(csv.DictReader(handle), {})
            if changed := changes({name: before.get(name) or "" for name in now}, now):
                raise InputError(
                    f"{out} was measured elsewhere or otherwise ({'; '.join(changed)}): give another --out"
                )
            return
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(now), lineterminator="\n")
            writer.writeheader()
            writer.writerow(now)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another --out") from error


__all__ = ["STAGES", "parse_stages", "run"]
