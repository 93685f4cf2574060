"""What a person sees while a sweep runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from vitbench.results.row import Row


def describe(row: Row) -> str:
    """A row in one line."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    parts = []
    if row.speed.latency_ms_p50 is not None and row.speed.img_per_s is not None:
        parts.append(f"{row.speed.img_per_s:,.4g} img/s, {row.speed.latency_ms_p50:,.4g} ms")
    if row.memory.peak_mem_mib is not None:
        parts.append(f"{row.memory.peak_mem_mib:,.0f} MiB")
    elif row.memory.predicted_mem_mib is not None:
        parts.append(f"{row.memory.predicted_mem_mib:,.0f} MiB predicted")
    if row.health.valid is False:
        parts.append(f"not valid: {row.reason}")
    return ", ".join(parts) or "ok"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class ConsoleProgress:
    """Prints each finished row; on a terminal below them a bar, the time left, what runs and for how long."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing takes the processor from what is measured on it
        )
        self._task = self._bar.add_task("", total=total)
        self._at = "starting the worker"
        self._since = time.monotonic()
        self._end: float | None = None

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, case: str | None, what: str) -> None:
        self._at = f"{what} {case or 'all implementations'}"
        self._since = time.monotonic()

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None:
        left = f", {total - done} left, about {duration(seconds_left)}" if seconds_left else ""
        self._end = time.monotonic() + seconds_left if seconds_left else None
        self._bar.update(self._task, completed=done, total=total)
        self.note(f"[{done}/{total}] {row.case}  {describe(row)}{left}")

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def tick(self) -> None:
        now = time.monotonic()
        left = f"about {duration(max(0.0, self._end - now))} left, " if self._end else ""
        self._bar.update(self._task, description=f"{left}{self._at} ({duration(now - self._since)})")
