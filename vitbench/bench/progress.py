"""What a person sees while a sweep runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

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
    """Prints each finished row; between rows, on a terminal, what runs and for how long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting the worker", console=console)
        self._at = "starting the worker"
        self._since = time.monotonic()
        self._left = ""

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def phase(self, case: str | None, what: str) -> None:
        self._at = f"{case or 'all implementations'}: {what}"
        self._since = time.monotonic()

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None:
        self._left = f", {total - done} left, about {duration(seconds_left)}" if seconds_left else ""
        self.note(f"[{done}/{total}] {row.case}  {describe(row)}{self._left}")

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def tick(self) -> None:
        running = duration(time.monotonic() - self._since)
        self._status.update(f"{self._at} ({running}){self._left}")
