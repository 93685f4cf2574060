"""Tensors that end where memory may not be read: one element further ends the process that reads it."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_ALIVE: list[mmap.mmap] = []


def guarded(tensor: Tensor) -> Tensor:
    """A copy of a tensor on the CPU; its memory ends at a page that is protected."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    body = -(-size // page) * page
    memory = mmap.mmap(-1, body + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ALIVE.append(memory)
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=body - size).view(tensor.shape)
    copy.copy_(tensor)
    end = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + body)
    if ctypes.CDLL(None, use_errno=True).mprotect(end, page, 0):  # no access
        raise OSError(ctypes.get_errno(), "mprotect")
    return copy


#: Exit code of a copy in which autograd refuses to run.
_THREADED = 99


def end_of_child(work: Callable[[], object]) -> int:
    """How a copy of this process ends that does the work: 0, 1 after an exception, minus a signal's number.

    Autograd refuses in copies of a process in which its threads run, as they do after some tests with CUDA builds of
    torch: then it is how the whole test ends in a new process.
    """
    child = os.fork()
    if not child:
        faulthandler.disable()
        torch.set_num_threads(1)
        code = 0
        try:
            work()
        except BaseException as error:
            traceback.print_exc()
            code = _THREADED if "Autograd-and-Fork" in str(error) else 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != _THREADED:
        return code
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    return subprocess.run(command, env=own, cwd=Path(__file__).parents[2]).returncode
