"""What one compilation needs and gives back: plain data that crosses process borders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitkernels._launch import Launch


@dataclass(frozen=True)
class FunctionRef:
    """A function found again in another process: by module name, or by file when the module is not importable."""

    module: str
    file: str
    name: str


def reference(function: Any) -> FunctionRef:
    """The reference to a `@triton.jit` function (compiled or interpreted).

    Raises: ValueError when it is nested in another function, where no other process can find it.
    """
    plain = getattr(function, "fn", function)
    while hasattr(plain, "fn"):
        plain = plain.fn
    name = plain.__qualname__
    if "<locals>" in name:
        raise ValueError(f"kernel {name} is defined inside a function; define it at the top level of a module")
    return FunctionRef(plain.__module__, plain.__code__.co_filename, name)


@dataclass(frozen=True)
class Job:
    """One launch to compile and count: its kernel, and the functions among its arguments, are references."""

    kernel: FunctionRef
    launch: Launch
    arch: int


def job_of(launch: Launch, arch: int) -> Job:
    """What another process needs to examine a launch on sm_<arch>.

    Raises: ValueError when the kernel cannot be found from another process.
    """
    args = {name: reference(value) if callable(value) else value for name, value in launch.args.items()}
    plain = replace(launch, kernel=None, args=args, options=dict(launch.options))
    return Job(reference(launch.kernel), plain, arch)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    `sass` is the disassembly; `stack_bytes` per thread (spills live there); `shared_bytes` per program, static and
    dynamic; `parameters` the kernel's parameters as the machine sees them: (offset, size, argument name or "").
    """

    sass: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_memory_columns: int
    num_warps: int
    parameters: tuple[tuple[int, int, str], ...]
    triton: str


@dataclass(frozen=True)
class Failed:
    """Why a kernel could not be compiled, in one line, and the compiler's whole text."""

    reason: str
    detail: str
