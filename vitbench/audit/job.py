"""What one compilation needs and gives back: plain data that crosses process borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """One kernel to compile: `args` as in `vitkernels.Launch.args`, functions among them as references."""

    kernel: FunctionRef
    args: Mapping[str, Any]
    arch: int
    num_warps: int
    num_stages: int
    options: Mapping[str, Any] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()


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
