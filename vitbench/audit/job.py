"""What one compilation needs and gives back: plain data that crosses process borders."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from vitkernels import Launch

from vitbench.errors import InputError

#: Pointers to integers, behind which a launch may say what there is, and numpy's name of the integers.
INTEGERS = {"*i32": "<i4", "*i64": "<i8", "*u32": "<u4", "*u64": "<u8", "*i16": "<i2", "*i8": "i1", "*u8": "u1"}


@dataclass(frozen=True)
class FunctionRef:
    """A function found again in another process: by module name, or by file when the module is not importable."""

    module: str
    file: str
    name: str


def _plain(function: Any) -> Any:
    """The Python function under a `@triton.jit` function, compiled or interpreted, and under its other decorators."""
    while hasattr(function, "fn"):
        function = function.fn
    return function


def bare(function: Any) -> Any:
    """The `@triton.jit` function under @triton.autotune and @triton.heuristics; what is none is given back."""
    while hasattr(getattr(function, "fn", None), "fn"):
        function = function.fn
    return function


def reference(function: Any) -> FunctionRef:
    """The reference to a `@triton.jit` function (compiled or interpreted).

    Raises: ValueError when it is nested in another function, where no other process can find it.
    """
    plain = _plain(function)
    name = plain.__qualname__
    if "<locals>" in name:
        raise ValueError(f"kernel {name} is defined inside a function; define it at the top level of a module")
    return FunctionRef(plain.__module__, plain.__code__.co_filename, name)


def _module(ref: FunctionRef) -> ModuleType:
    if ref.module != "__main__":
        try:
            module = importlib.import_module(ref.module)
        except ImportError:
            pass
        else:
            if os.path.realpath(module.__file__ or "") == os.path.realpath(ref.file):
                return module
    name = "vitbench_audited_" + hashlib.sha256(ref.file.encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ref.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {ref.file}, which defines kernel {ref.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def resolve(ref: FunctionRef) -> Any:
    """The function that a reference stands for.

    Raises: ImportError, AttributeError.
    """
    found: Any = _module(ref)
    for part in ref.name.split("."):
        found = getattr(found, part)
    return bare(found)


@dataclass(frozen=True)
class Job:
    """One launch to compile: its kernel, and the functions among its arguments, are references.

    `counted` asks for the machine code and its counts too, not for the resources alone. Jobs of one `likeness` very
    probably compile to the same code: it is for scheduling, the cache has the exact key. `card` is the one to model, ""
    for the architecture's usual one.
    """

    kernel: FunctionRef
    launch: Launch
    arch: int
    counted: bool = True
    likeness: str = ""
    card: str = ""


def job_of(launch: Launch, arch: int, counted: bool = True, card: str = "") -> Job:
    """What another process needs to examine a launch on sm_<arch>.

    Raises: ValueError when the kernel cannot be found from another process; InputError when arguments are missing.
    """
    launch = decided(launch)
    args = {name: reference(value) if callable(value) else value for name, value in launch.args.items()}
    plain = replace(launch, kernel=None, args=args, options=dict(launch.options))
    return Job(reference(launch.kernel), plain, arch, counted, _likeness(launch, arch), card)


def decided(launch: Launch) -> Launch:
    """With what its kernel's decorators decide and the launch leaves out: heuristics, and a single configuration.

    Raises: InputError when there are several, or a heuristic cannot be computed from the arguments.
    """
    kernel, args = launch.kernel, dict(launch.args)
    given: dict[str, Any] = {}
    while kernel is not bare(kernel):
        configs = getattr(kernel, "configs", ())
        if configs and not (wanted := configs[0].kwargs.keys()) <= args.keys():
            if len(configs) > 1:
                raise InputError(
                    f"{launch.id}: its kernel is tuned over {len(configs)} configurations; give {', '.join(wanted)} of "
                    "one in args, or let vitkernels.launches_of take them all"
                )
            args |= configs[0].kwargs
            given = {"num_warps": configs[0].num_warps, "num_stages": configs[0].num_stages}
        for name, compute in getattr(kernel, "values", {}).items():
            if name not in args:
                args[name] = _heuristic(name, compute, launch, args)
        kernel = kernel.fn
    return launch if len(args) == len(launch.args) else replace(launch, args=args, **given)


def _heuristic(name: str, compute: Any, launch: Launch, args: Mapping[str, Any]) -> Any:
    try:
        return compute(args)
    except Exception as problem:  # it may ask a tensor for what a type string does not have
        raise InputError(
            f"{launch.id}: the heuristic of {name} cannot be computed from args "
            f"({type(problem).__name__}: {problem}); give {name} there"
        ) from problem


def _likeness(launch: Launch, arch: int) -> str:
    """Everything that reaches the compiler; of integers that are no constants only what they are specialised by."""
    parameters = inspect.signature(_plain(launch.kernel)).parameters
    constants = {name for name, p in parameters.items() if "constexpr" in str(p.annotation)}

    def shown_as(name: str, value: Any) -> Any:
        if type(value) is int and name not in constants:
            return value == 1, value % 16 == 0
        return _name(value) if callable(value) else value

    shown = {name: shown_as(name, value) for name, value in launch.args.items()}
    options = (launch.num_warps, launch.num_stages, sorted(launch.options.items()), sorted(launch.unaligned))
    return repr((_name(launch.kernel), arch, sorted(shown.items(), key=lambda item: item[0]), options))


def _name(function: Any) -> str:
    """The same in every process, which what a function shows of itself is not where kernels are interpreted."""
    plain = _plain(function)
    return f"{plain.__module__}:{plain.__qualname__}"


@dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    `sass` is the disassembly, empty when only resources were asked for; `matrix_instruction` the one that the
    intermediate code (PTX) asks for, as the disassembly names it, or ""; `stack_bytes` per thread (spills live there);
    `shared_bytes` per program, static and dynamic; `parameters` the kernel's parameters as the machine sees them:
    (offset, size, argument name or "").
    """

    sass: str
    matrix_instruction: str
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
