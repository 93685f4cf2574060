"""Locks that are waited for: a shard is measured by one process, a device by one shard."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitbench.errors import InputError


@contextmanager
def held(path: Path, waiting: Callable[[], None], patience: float = float("inf")) -> Iterator[None]:
    """Holds the lock of a file, which stays, so that all who wait are waiting for the same; calls `waiting` meanwhile.

    Raises: InputError after `patience` seconds.
    """
    end = time.monotonic() + patience
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise InputError(f"another process has held {path} for {patience:g} s") from None
            waiting()
            time.sleep(0.25)
        yield


def of_device(identity: str) -> Path:
    """The lock of a device of this machine, by what tells it from all others."""
    return Path(tempfile.gettempdir()) / f"vitbench-{os.getuid()}-{identity}.lock"


__all__ = ["held", "of_device"]
