"""The folder of a run: all that its shards, `status` and `merge` need, on any node. Imports no torch.

    RUN/run.json               how cases are measured, and how many there are
    RUN/jobs.jsonl             what was submitted, a line a job
    RUN/jobs/                  the executor's own files and logs
    RUN/shards/007/cases.csv   the shard's cases and their places in the plan
                  /rows-*.csv  their rows, a file a machine that they were measured on, and samples beside it
                  /state.json  how far it is

Nothing that is read here is code: the files are JSON and CSV.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, parse
from vitbench.errors import InputError
from vitbench.results import journal, lines
from vitbench.results.row import Row, environment_of
from vitbench.variant import Variant

FORMAT = 1
#: Seconds without a sign of life after which a running shard counts as lost; it gives one every BEAT seconds.
SILENT, BEAT = 120.0, 5.0
CASES_HEADER = ("position", "case")


@dataclass(frozen=True)
class State:
    """How far a shard is: "queued", "waiting" (for its device), "running", "done" or "stopped", and why.

    `fruitless` counts attempts in a row that added no row to the `rows` that were there when they began.
    """

    state: str = "queued"
    job: str = ""
    node: str = ""
    device: str = ""
    at: str = ""
    why: str = ""
    rows: int = 0
    fruitless: int = 0


class Shard:
    """One shard's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = int(folder.name)

    def cases(self) -> list[tuple[int, Case]]:
        """Places in the plan and cases.

        Raises: InputError when the file is damaged.
        """
        return [(place, parse(case)) for place, case in self.case_ids()]

    def case_ids(self) -> list[tuple[int, str]]:
        path = self.folder / "cases.csv"
        try:
            rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
            if tuple(rows[0]) != CASES_HEADER:
                raise ValueError("its header is another")
            return [(int(place), case) for place, case in rows[1:]]
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{path} is not a shard's list of cases ({error}): the run is damaged") from error

    def row_files(self) -> list[Path]:
        """The CSVs of its rows, the one that was begun first at the front."""
        return sorted(self.folder.glob("rows-*.csv"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def rows_on(self, row: Row) -> Path:
        """Where rows measured as this one are, which is no other than where all of them can be compared."""
        digest = hashlib.sha256(repr(sorted(environment_of(row).items())).encode()).hexdigest()
        return self.folder / f"rows-{digest[:12]}.csv"

    def done(self) -> int:
        """How many rows there are."""
        return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in self.row_files())

    def last_row_at(self) -> float | None:
        """When the last row was added, in seconds since 1970."""
        return max((path.stat().st_mtime for path in self.row_files()), default=None)

    def rows(self) -> list[Row]:
        return [row for path in self.row_files() for row in journal.read(path)]

    def state(self) -> State:
        """The last that it said; "lost" where that is too long ago for a shard that runs."""
        path = self.folder / "state.json"
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            state = State(**{name: kind(said[name]) for name, kind in _STATE.items()})
            silent = time.time() - path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return State()
        if state.state in ("running", "waiting") and silent > SILENT:
            return replace(state, state="lost", why=f"no sign of life for {silent:.0f} s")
        return state

    def say(self, state: State) -> None:
        write_json(self.folder / "state.json", asdict(state))


_STATE: dict[str, Any] = {
    "state": str, "job": str, "node": str, "device": str, "at": str, "why": str, "rows": int, "fruitless": int,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder, opened."""

    folder: Path
    options: SweepOptions
    executor: str
    cases: int

    @property
    def shards(self) -> list[Shard]:
        return [Shard(path) for path in sorted((self.folder / "shards").iterdir(), key=lambda path: int(path.name))]

    def shard(self, number: int) -> Shard:
        return next(shard for shard in self.shards if shard.number == number)

    @property
    def jobs(self) -> Path:
        """Where an executor keeps what it runs: nobody else may write there, as it may be code."""
        folder = self.folder / "jobs"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
            raise InputError(f"{folder} can be written by others, who could have your jobs run anything: chmod 700 it")
        return folder

    def submitted(self, shard: int, job: str) -> None:
        record = {"shard": shard, "job": job, "submitted_at": datetime.now(UTC).isoformat(timespec="seconds")}
        lines.append(self.folder / "jobs.jsonl", json.dumps(record) + "\n")

    def job_of(self) -> dict[int, str]:
        """The last job of every shard that was submitted."""
        path = self.folder / "jobs.jsonl"
        if not path.exists():
            return {}
        records = (json.loads(line) for line in lines.complete(path).splitlines())
        return {int(record["shard"]): str(record["job"]) for record in records}


def create(
    folder: Path, shards: Sequence[Sequence[Case]], places: dict[Case, int], options: SweepOptions, by: str
) -> Run:
    """Writes a run's folder; `run.json` comes last, so that a folder without one is none.

    Raises: InputError when the folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something that is no run: give another --out")
    width = len(str(len(shards) - 1))
    try:
        for number, cases in enumerate(shards):
            inside = folder / "shards" / f"{number:0{width}}"
            inside.mkdir(parents=True)
            with (inside / "cases.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(CASES_HEADER)
                writer.writerows((places[case], case.id) for case in cases)
        write_json(
            folder / "run.json",
            {
                "format": FORMAT,
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "executor": by,
                "cases": sum(map(len, shards)),
                "options": asdict(options),
            },
        )
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; give another --out") from error
    return open_run(folder)


def exists(folder: Path) -> bool:
    return (folder / "run.json").exists()


def open_run(folder: Path) -> Run:
    """Raises: InputError when the folder is none of a run, or of another format."""
    if not exists(folder):
        raise InputError(f"{folder} is not the folder of a run: `vitbench bench --executor ... --out RUN` makes one")
    try:
        said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise InputError(f"{folder} is a run of format {said['format']}, this vitbench reads {FORMAT}")
        given = dict(said["options"])
        options = SweepOptions(**{**given, "passes": tuple(given["passes"]), "variant": Variant(**given["variant"])})
        return Run(folder.absolute(), options, str(said["executor"]), int(said["cases"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'run.json'} is damaged ({error}): begin anew with --fresh") from error


def set_aside(folder: Path) -> Path | None:
    """Renames a run's folder to the first free numbered name, so that nothing is overwritten."""
    if not exists(folder):
        return None
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def write_json(path: Path, value: object) -> None:
    """In one step: whoever reads sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def default_folder(models: str) -> Path:
    """results/runs/<models> under the current folder."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", models.replace("*", "all")).strip("-")[:80]
    return Path("results") / "runs" / name


__all__ = ["BEAT", "SILENT", "Run", "Shard", "State", "create", "default_folder", "exists", "open_run", "set_aside"]
