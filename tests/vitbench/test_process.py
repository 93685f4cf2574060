"""Child processes: questions, answers, last words, and no child that outlives what started it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from vitbench.process import Process, python_environment

ECHO = """
from vitbench.process import answers
say, questions = answers()
print("a library prints")
for question in questions:
    say({"asked": question})
"""


def python(program: str, **how: object) -> Process:
    return Process([sys.executable, "-c", program], environment=python_environment(), **how)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_objects_go_to_and_fro_and_prints_do_not_disturb_them() -> None:
    with python(ECHO, asked=True) as process:
        for question in (1, "two\nlines", ("a", 1.5), None):
            process.say(question)
            assert process.hear() == {"asked": question}
        process.close()
    assert process.code() == 0


def test_what_ends_instead_of_answering_tells_how() -> None:
    with python(
        "import sys; sys.stdin.readline(); print('last words', file=sys.stderr); sys.exit(3)", asked=True
    ) as one:
        one.say("question")
        with pytest.raises(EOFError):
            one.hear()
        assert one.how_it_ended() == "exit code 3: last words"
        one.say("another")
        with pytest.raises(EOFError):
            one.hear()


@pytest.mark.parametrize(("program", "how"), [
    ("import os; os.abort()", "killed by SIGABRT: no output"),
    ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL (the kernel does that when memory runs out): no output"),
    ("print('out'); raise SystemExit(1)", "exit code 1: out"),
])  # fmt: skip
def test_how_it_ended(program: str, how: str) -> None:
    with python(program, quiet=True) as process:
        assert process.wait() == process.code()
        assert process.how_it_ended() == how


def test_with_it_everything_ends_that_it_started() -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)\n"
    )
    with python(program, quiet=True) as process:
        while not (said := process.said().strip()):
            assert process.code() is None
            time.sleep(0.02)
        assert process.wait(0.01) is None
    child = int(said)
    end = time.monotonic() + 30
    while alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(child)


def test_what_does_not_end_by_itself_is_ended() -> None:
    with python("import time; time.sleep(600)", asked=True) as process:
        process.close(0.1)
        assert process.code() == -9


def test_a_childs_environment_imports_what_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT_OUT_1", "1")
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    found = python_environment("/first", without=["LEFT_OUT"])
    assert found["PYTHONPATH"] == os.pathsep.join(["/first", os.getcwd(), "/somewhere"])
    assert "LEFT_OUT_1" not in found
    assert found["PATH"] == os.environ["PATH"]
