"""Processes that start at once: forked from one that has imported what they run, which takes seconds with torch.

`start(["package.module", "argument"])` runs the module's main() as `python -m` would. The first one starts a server for
its module and environment, which imports, calls the module's warm() if it has one, touches no device, and forks; it
ends with the process that started it, and those that it forked can use it and its siblings too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Servers that are kept; each holds the memory of its imports.
KEPT = 4
#: What is forked could not use a GPU whose driver has been asked before: torch then counts GPUs without it.
_WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: What a cluster sends to every process of a job that it cancels, preempts or is about to end: for the owner to act on.
#: Were others ended by it, the owner would see them crash.
CANCELLING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: Variables that differ from call to call, two of them since torch sets them, and that no library reads while it is
#: imported.
_VOLATILE = (
    "PYTEST_CURRENT_TEST", "_", "OLDPWD", "COLUMNS", "LINES", "VITBENCH_SERVERS", "VITBENCH_CACHE", "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
)  # fmt: skip


def start(command: Sequence[str], **how: Any) -> Any:
    """A process that runs a module that has a main(), with arguments; `how` is that of `subprocess.Popen`."""
    for _ in range(2):  # a server may be ending just now
        with contextlib.suppress(OSError):
            return _Forked(command, **how)
    # Its own process tells what is wrong with a module, and does where no server can be.
    return subprocess.Popen([sys.executable, "-P", "-m", *command], **how)


def prepare(module: str, environment: Mapping[str, str]) -> None:
    """Starts the server of a module that will be run, so that it imports while this process does other things."""
    key = _key(module, environment)
    with contextlib.suppress(OSError), _one_starts:
        if key in _servers or key not in _addresses():
            _own(module, key, environment, waits=False)


class _Forked:
    """What `subprocess.Popen` is, as far as `vitbench.process.Process` uses it. Raises: OSError."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = True,
        start_new_session: bool = False,
    ) -> None:
        environment = dict(os.environ if env is None else env)
        ours: list[int] = []  # ends of pipes that are the child's alone
        self.stdin: Any = None
        self.stdout: Any = None
        given = [0, 1, 2]
        if stdin == subprocess.PIPE:
            given[0], write = os.pipe()
            ours.append(given[0])
            self.stdin = os.fdopen(write, "w")
        if stdout == subprocess.PIPE:
            read, given[1] = os.pipe()
            ours.append(given[1])
            self.stdout = os.fdopen(read)
        elif stdout is not None:
            given[1] = stdout.fileno()
        if stderr is not None:
            given[2] = stderr.fileno()
        request = {
            "arguments": list(command),
            "cwd": str(cwd or os.getcwd()),
            "environment": {**environment, "VITBENCH_SERVERS": json.dumps(_addresses())},
            "apart": start_new_session,
        }
        self.returncode: int | None = None
        self._told = b""
        self._one_hears = threading.Lock()  # a process may be waited for in one thread and killed in another
        try:
            self._connection = _connect(command[0], environment)
            message = json.dumps(request).encode()
            socket.send_fds(self._connection, [len(message).to_bytes(8, "little")], given)
            self._connection.sendall(message)
            self.pid = self._hear()
            if self.pid < 0:
                raise OSError("the server ended")
        finally:
            for one in ours:
                os.close(one)

    def _hear(self) -> int:
        """The next number: the process id, then the exit code."""
        while b"\n" not in self._told:
            more = self._connection.recv(64)
            if not more:
                return -signal.SIGKILL  # with what watched it
            self._told += more
        number, _, self._told = self._told.partition(b"\n")
        return int(number)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("", timeout or 0.0)
            with self._one_hears:
                if self.returncode is None:
                    self.returncode = self._hear()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class _Server:
    """A process that has imported a module and forks others that run it."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vitbench-")
        self.address = os.path.join(self._folder.name, "socket")
        command = [sys.executable, "-P", "-m", __name__, self.address, module]
        self._process = subprocess.Popen(
            command,
            env={**environment, **_WITHOUT_CUDA},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._listens = False
        self.owner = os.getpid()

    def connect(self) -> socket.socket:
        """Waits until it listens. Raises: OSError where it has ended, as one does that cannot import its module."""
        assert self._process.stdout is not None
        self._listens = self._listens or bool(self._process.stdout.readline())
        return _connection(self.address)

    def lives(self) -> bool:
        with contextlib.suppress(OSError), self.connect():
            return self._process.poll() is None
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()


_servers: dict[str, _Server] = {}
_one_starts = threading.Lock()


def _key(module: str, environment: Mapping[str, str]) -> str:
    kept = sorted((name, value) for name, value in environment.items() if name not in _VOLATILE)
    return hashlib.sha256(repr((module, kept)).encode()).hexdigest()


def _addresses() -> dict[str, str]:
    """Sockets by key: those of the processes that this one comes from, and its own."""
    return json.loads(os.environ.get("VITBENCH_SERVERS", "{}")) | {key: one.address for key, one in _servers.items()}


def _connect(module: str, environment: Mapping[str, str]) -> socket.socket:
    key = _key(module, environment)
    with _one_starts:
        if key not in _servers and (address := _addresses().get(key)):
            with contextlib.suppress(OSError):
                return _connection(address)
        return _own(module, key, environment).connect()


def _connection(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def _own(module: str, key: str, environment: Mapping[str, str], waits: bool = True) -> _Server:
    server = _servers.pop(key, None)
    if server is None or (waits and not server.lives()):
        while len(_servers) >= KEPT:
            _servers.pop(next(iter(_servers))).close()
        server = _Server(module, environment)
    _servers[key] = server  # the last one is the one that was used last
    return server


@atexit.register
def close() -> None:
    """Ends the servers of this process; what they started goes on."""
    while _servers:
        server = _servers.popitem()[1]
        if server.owner == os.getpid():
            server.close()


def _serve(address: str, module: str) -> Callable[[], None]:
    """Forks a process for each request until the owner is gone; returns in those alone, with what they run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's
    for number in CANCELLING:
        signal.signal(number, signal.SIG_IGN)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print
    gc.disable()  # a collection would look at all that is imported so far, again and again
    imported = importlib.import_module(module)
    if warm := getattr(imported, "warm", None):
        warm()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.exit(f"{module} uses the GPU while it is imported")
    gc.collect()
    gc.freeze()  # what was imported is for good: no collection in a process looks at it
    gc.enable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    os.write(out, b"\n")
    os.close(out)
    while True:
        # The owner says nothing: it has closed its end.
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        size, given, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:  # somebody who only looked whether this lives
            connection.close()
            continue
        request = json.loads(connection.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
        if os.fork() == 0:
            listener.close()
            return _watched(connection, request, given, imported.main)
        connection.close()
        for one in given:
            os.close(one)


def _watched(
    connection: socket.socket, request: dict[str, Any], given: Sequence[int], main: Callable[[], None]
) -> Callable[[], None]:
    """Forks the process itself, and in the one that does not return tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for one in (0, 1, 2, *given):
            os.close(one)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody may be left who wants to know
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["apart"]:
        os.setsid()
    for number, one in enumerate(given):
        os.dup2(one, number)
        os.close(one)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    return main


if __name__ == "__main__":
    _serve(*sys.argv[1:])()
