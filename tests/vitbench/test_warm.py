"""Processes that are forked from a server: what they are given, how they end, and what becomes of the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vitbench import warm
from vitbench.process import Process, python_environment

TOLD = """
import os, signal, sys, time
imported_by = os.getpid()
sys.stderr.write("noise\\n")

def main():
    from vitbench.process import answers
    say, questions = answers()
    for question in questions:
        if question == "die":
            os.abort()
        if question == "fail":
            raise ValueError("a reason")
        if question == "end":
            sys.exit(7)
        say({"arguments": sys.argv, "folder": os.getcwd(), "A": os.environ.get("A"),
             "cache": os.environ.get("XDG_CACHE_HOME"), "forked": os.getpid() != imported_by, "server": imported_by,
             "alone": os.getsid(0) == os.getpid(), "asked": question})
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    (tmp_path / "told.py").write_text(TOLD)
    yield python_environment(tmp_path)
    warm.close()


def told(environment: Mapping[str, str], *arguments: str, **how: bool) -> Process:
    return Process(["told", *arguments], environment=environment, asked=True, start=warm.start, **how)


def ask(process: Process, question: str = "what") -> dict[str, object]:
    process.say(question)
    found: dict[str, object] = process.hear()
    return found


def test_a_forked_process_is_what_a_fresh_one_would_be(
    environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with told(environment, "x", "y z") as one, told({**environment, "A": "ä"}, apart=False) as other:
        first, second = ask(one), ask(other, "when")
        assert first == {
            "arguments": ["told", "x", "y z"], "folder": str(tmp_path), "A": None,
            "cache": environment.get("XDG_CACHE_HOME"), "forked": True, "server": first["server"], "alone": True,
            "asked": "what",
        }  # fmt: skip
        assert (second["A"], second["alone"], second["asked"]) == ("ä", False, "when")
        assert first["server"] != second["server"], "what a module reads while it is imported may differ"
        one.close()
        assert one.code() == 0
        other.kill()
        assert other.code() == -9
    later = {"XDG_CACHE_HOME": "/elsewhere", "TORCHINDUCTOR_CACHE_DIR": "/set/by/torch", "TRITON_CACHE_DIR": "/too"}
    with told({**environment, **later}) as again:
        third = ask(again)
        assert (third["server"], third["cache"]) == (first["server"], "/elsewhere"), "imported once"


@pytest.mark.parametrize(("question", "how"), [
    ("die", "killed by SIGABRT"), ("fail", "exit code 1: ValueError: a reason"), ("end", "exit code 7: no output"),
])  # fmt: skip
def test_how_it_ended(environment: Mapping[str, str], question: str, how: str) -> None:
    with told(environment) as process:
        process.say(question)
        with pytest.raises(EOFError):
            process.hear()
        assert how in process.how_it_ended()


def test_a_server_that_is_gone_is_started_again(environment: Mapping[str, str]) -> None:
    with told(environment) as one:
        server = ask(one)["server"]
        assert isinstance(server, int)
        os.kill(server, signal.SIGKILL)
        assert ask(one)["server"] == server, "what it started goes on"
    with told(environment) as two:
        assert ask(two)["server"] != server


def test_none_is_prepared_where_this_process_comes_from_one_that_has_it(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with told(environment) as one, monkeypatch.context() as child:
        child.setenv("VITBENCH_SERVERS", json.dumps(warm._addresses()))
        child.setattr(warm, "_servers", {})
        warm.prepare("told", environment)
        with told(environment) as two:
            assert ask(two)["server"] == ask(one)["server"]
        assert not warm._servers
        warm.prepare("told", {**environment, "A": "another"})
        assert len(warm._servers) == 1
        warm.close()


def test_a_module_that_cannot_be_imported_tells_so_in_a_process_of_its_own(environment: Mapping[str, str]) -> None:
    with Process(["told.nothing"], environment=environment, asked=True, start=warm.start) as process:
        assert "told.nothing" in process.how_it_ended()


def test_no_server_outlives_its_owner(environment: Mapping[str, str]) -> None:
    program = (
        "import os, sys; from vitbench import warm; from vitbench.process import Process\n"
        "process = Process(['told'], asked=True, start=warm.start); process.say(1); found = process.hear()\n"
        "print(found['server'], process.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/stat").exists() and running(int(pid)) for pid in done.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
