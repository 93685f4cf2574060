"""How far a run is, from its folder alone: new rows as they come, and a table of its shards. Imports no torch."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

from vitbench import columns
from vitbench.bench.progress import ConsoleProgress, duration
from vitbench.cluster.folder import Run, Shard, State
from vitbench.columns import ALL, Column, Shown
from vitbench.console import console
from vitbench.errors import InputError
from vitbench.results.row import HEADER, TABLE, Row


class Tail:
    """The rows that a CSV has gained since it was asked last."""

    def __init__(self, path: Path, skip: bool) -> None:
        self._path = path
        self._at = 0
        if skip:
            self.new()

    def new(self) -> list[Row]:
        """Raises: InputError when a line is no row."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        first = self._at == 0
        self._at += len(whole)
        found = list(csv.reader(whole.decode("utf-8", errors="replace").splitlines()))
        if first and found and tuple(found.pop(0)) != HEADER:
            raise InputError(f"{self._path} is not {TABLE.what}")
        try:
            return [TABLE.parse(cells) for cells in found]
        except ValueError as error:
            raise InputError(f"{self._path} has a line that is damaged ({error}); repair or remove it") from error


class Follower:
    """Prints the rows of a run that come after this was made."""

    def __init__(self, run: Run, progress: ConsoleProgress) -> None:
        self.run = run
        self._progress = progress
        self._start = time.monotonic()
        self._shards = run.shards
        self._tails: dict[Path, Tail] = {}
        self._new = 0
        self.done = 0
        self._find(skip=True)
        self.done = sum(shard.done() for shard in self._shards)

    def _find(self, skip: bool = False) -> None:
        for shard in self._shards:
            for path in shard.row_files():
                if path not in self._tails:
                    self._tails[path] = Tail(path, skip)

    def look(self) -> None:
        self._find()
        for tail in self._tails.values():
            for row in tail.new():
                self.done += 1
                self._new += 1
                left = self.run.cases - self.done
                each = (time.monotonic() - self._start) / self._new
                self._progress.row(row, self.done, self.run.cases, left * each if left else None)
        states = [shard.state() for shard in self._shards]
        busy = [state.at for state in states if state.state == "running"]
        self._progress.phase(f"{len(busy)} of {len(states)} shards run" + (f": {busy[0]}" if busy else ""), "")
        self._progress.tick()

    def over(self) -> bool:
        """Whether nothing more will come, as every shard is done, has stopped or is lost."""
        return all(shard.state().state in ("done", "stopped", "lost") for shard in self._shards)


def follow(run: Run) -> None:
    """Shows new rows until there will be no more; Ctrl-C ends the showing alone."""
    printer = console()
    with ConsoleProgress(printer, run.cases) as progress:
        follower = Follower(run, progress)
        printer.print(
            f"{follower.done} of {run.cases} cases are done; Ctrl-C leaves, and the jobs go on", soft_wrap=True
        )
        while not follower.over():
            follower.look()
            time.sleep(0.5)
        follower.look()


def show(run: Run, asked: Shown = ALL) -> bool:
    """Prints the table of shards; whether none has stopped before its end.

    Raises: InputError when the table has not what is asked of it.
    """
    shards, jobs = run.shards, run.job_of()
    states = [shard.state() for shard in shards]
    done = [shard.done() for shard in shards]
    totals = [len(shard.case_ids()) for shard in shards]
    columns.show(_table(shards, states, done, totals, jobs), asked)
    printer = console()
    printer.print(f"{sum(done)} of {run.cases} cases are done", soft_wrap=True)
    bad = [
        f"shard {s.number} {state.state}: {state.why}" for s, state in zip(shards, states, strict=True) if _bad(state)
    ]
    for text in bad[:5]:
        printer.print(text, soft_wrap=True)
    if bad:
        printer.print(
            f"{len(bad)} shards have stopped: the command that began the run goes on with them", soft_wrap=True
        )
    return not bad


def _bad(state: State) -> bool:
    return state.state in ("stopped", "lost")


def _table(
    shards: Sequence[Shard], states: Sequence[State], done: Sequence[int], totals: Sequence[int], jobs: dict[int, str]
) -> list[Column]:
    now = time.time()
    since = [None if (at := shard.last_row_at()) is None else max(0.0, now - at) for shard in shards]
    return columns.filled(
        [
            Column("shard", [shard.number for shard in shards]),
            Column("state", [state.state for state in states], "text"),
            Column("done", list(done)),
            Column("of", list(totals)),
            Column("last row", since, show=lambda seconds: "" if seconds is None else f"{duration(seconds)} ago"),
            Column(
                "job", [state.job or jobs.get(s.number, "") for s, state in zip(shards, states, strict=True)], "text"
            ),
            Column("node", [state.node for state in states], "text"),
            Column("device", [state.device for state in states], "text"),
            Column("at", [state.at for state in states], "text"),
        ]
    )


__all__ = ["Follower", "follow", "show"]
