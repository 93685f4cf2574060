"""Files of lines that are only added to, by one writer or by several. A line is on disk before `append` returns.

A line that a kill cut short is none: readers leave it out and the next writer takes it away.
"""

from __future__ import annotations

import os
from pathlib import Path

from vitbench.errors import InputError

_STEP = 1 << 16


def complete(path: Path, what: str = "a vitbench CSV") -> str:
    """The text up to the last newline.

    Raises: InputError when it is not text, so not `what` it should be.
    """
    data = path.read_bytes()
    try:
        return data[: data.rfind(b"\n") + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {what}: it is not text") from error


def append(path: Path, text: str, header: str = "") -> None:
    """Adds whole lines behind the last whole one, and the header before them in a file that has no line yet.

    A write that fails (a full disk) leaves the file as it was. What is there is not read again, but for its end.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = _end(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            _write(descriptor, text if end else header + text)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def append_shared(path: Path, text: str, header: str = "") -> None:
    """The same for a file that several processes add to: in one write, behind whatever there is.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        _write(descriptor, "\n" + text if cut_short else text if size else header + text)
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    data = text.encode()
    written = 0
    while written < len(data):
        written += os.write(descriptor, data[written:])


def _end(descriptor: int) -> int:
    """Where the last whole line ends."""
    position = os.fstat(descriptor).st_size
    while position:
        start = max(0, position - _STEP)
        if newline := os.pread(descriptor, position - start, start).rfind(b"\n") + 1:
            return start + newline
        position = start
    return 0


__all__ = ["append", "append_shared", "complete"]
