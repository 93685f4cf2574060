"""Follows the addresses of a launch's loads and stores in Triton's interpreter: no memory is read, no value computed.

Machine code shows how wide a load is, not which of its lanes are masked off nor what two loads have in common; the
interpreter knows every element's address. Loads give zeros, products ones (a sum of weights that is zero is a case of
its own in kernels) and nothing is stored, so a launch needs no tensors and addresses that depend on data are those of
zeros. Programs spread over the grid are followed, and scaled.

A process of its own, since nothing compiles in one that interprets. It is asked a `Job` and answers a `Traffic`, or a
`Failed` for what the interpreter cannot run. With the bytes of an L2 cache as its argument it follows every program,
through that cache.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter
from vitkernels import Descriptor

from vitbench.audit.job import INTEGERS, Failed, FunctionRef, Job, resolve
from vitbench.audit.sampling import spread
from vitbench.audit.traffic import CAPACITIES, SECTOR, Traffic, total
from vitbench.audit.workers.interpreting import interpret_for_good
from vitbench.process import answers

Array = npt.NDArray[Any]
MIN_PROGRAMS, MAX_PROGRAMS = 4, 12
_ELEMENTS = 3_000_000  # addresses followed per launch: about a third of a second
_EXTENT = 1 << 17  # of a tensor whose descriptor does not tell it
_MAX_OPERATIONS = 50_000  # of a program that waits for memory to change


class RanAway(Exception):
    """A program did not end."""


class _Cache:
    """Which sectors loads find among the bytes that were loaded last, for every capacity at once."""

    def __init__(self, capacities: tuple[int, ...] = CAPACITIES) -> None:
        self.capacities = capacities
        self.sectors: Array = np.empty(0, np.int64)
        self.last: Array = np.empty(0, np.int64)
        self.clock = 0
        self.missed = np.zeros(len(capacities))

    def load(self, sectors: Array) -> None:
        """One load's distinct sectors, in order."""
        at = np.searchsorted(self.sectors, sectors)
        seen = np.zeros(len(sectors), bool)
        inside = at < len(self.sectors)
        seen[inside] = self.sectors[at[inside]] == sectors[inside]
        age = self.clock - self.last[at[seen]]
        for position, capacity in enumerate(self.capacities):
            self.missed[position] += SECTOR * (np.count_nonzero(~seen) + np.count_nonzero(age > capacity))
        self.clock += SECTOR * len(sectors)
        self.last[at[seen]] = self.clock
        fresh = sectors[~seen]
        if not len(fresh):
            return
        known = np.ones(len(self.sectors) + len(fresh), bool)
        known[at[~seen] + np.arange(len(fresh))] = False
        sectors_before, last_before = self.sectors, self.last
        self.sectors, self.last = np.empty(len(known), np.int64), np.full(len(known), self.clock)
        self.sectors[known], self.sectors[~known] = sectors_before, fresh
        self.last[known] = last_before


class _Program:
    """The traffic of one program."""

    def __init__(self) -> None:
        self.asked = self.asked_wide = self.stored = 0.0
        self.elements = self.operations = 0
        self.everything, self.narrow = _Cache(), _Cache()
        self.loads: list[Array] = [np.empty(0, np.int64)]
        self.stores: list[Array] = [np.empty(0, np.int64)]
        self.atomics: list[Array] = [np.empty(0, np.int64)]

    def load(self, addresses: Array, active: Array, itemsize: int) -> None:
        sectors, count = self._sectors(addresses, active)
        self.asked += count * itemsize
        self.everything.load(sectors)
        self.loads.append(sectors)
        if _wide(addresses, itemsize):
            self.asked_wide += count * itemsize
        else:
            self.narrow.load(sectors)

    def store(self, addresses: Array, active: Array) -> None:
        self.stores.append(self._sectors(addresses, active)[0])
        self.stored += SECTOR * len(self.stores[-1])

    def _sectors(self, addresses: Array, active: Array) -> tuple[Array, int]:
        self.operations += 1
        self.elements += addresses.size
        if self.operations > _MAX_OPERATIONS:
            raise RanAway(f"no end after {_MAX_OPERATIONS} loads and stores")
        chosen = np.sort(addresses[active] // SECTOR)
        first = np.ones(len(chosen), bool)
        first[1:] = chosen[1:] != chosen[:-1]
        return chosen[first], len(chosen)

    def traffic(self) -> Traffic:
        missed, narrow = tuple(self.everything.missed), tuple(self.narrow.missed)
        return Traffic(self.asked, self.asked_wide, self.stored, missed, narrow, 1)


class _Common:
    """What all programs load, and how much a program loads, of all loads and of narrow ones; where atomics meet."""

    def __init__(self) -> None:
        self.atomics: list[tuple[Array, Array]] = []
        self.sectors: list[Array] = []
        self.asked = [0.0, 0.0]
        self.programs = 0

    def add(self, program: _Program) -> Traffic:
        caches = program.everything, program.narrow
        known = self.sectors or [cache.sectors for cache in caches]
        self.sectors = [np.intersect1d(a, cache.sectors, True) for a, cache in zip(known, caches, strict=True)]
        self.asked = [a + cache.clock for a, cache in zip(self.asked, caches, strict=True)]
        self.programs += 1
        self.atomics.append(np.unique(np.concatenate(program.atomics), return_counts=True))
        return program.traffic()

    def of(self, traffic: Traffic, programs: int) -> Traffic:
        everything, narrow = (float(SECTOR * len(sectors) * programs) for sectors in self.sectors)
        spans = self.asked[0] / self.programs, self.asked[1] / self.programs
        return replace(traffic, common=(everything, narrow), span=spans, meeting=self._meeting(programs))

    def _meeting(self, programs: int) -> float:
        """What two programs of those followed share is shared by as large a part of all programs."""
        addresses, times = (np.concatenate(parts) for parts in zip(*self.atomics, strict=True))
        _, place, sharing = np.unique(addresses, return_inverse=True, return_counts=True)
        sums = np.bincount(place, times)
        return float(np.where(sharing > 1, sums * programs / self.programs, sums).max(initial=0.0))


def _wide(addresses: Array, itemsize: int) -> bool:
    """Whether the elements lie in aligned runs of 16 bytes along an axis, as a thread's vector load needs them."""
    run = 16 // itemsize
    for axis in reversed(range(addresses.ndim)):
        if addresses.shape[axis] % run == 0:
            runs = addresses.swapaxes(axis, -1).reshape(-1, run)
            if not np.any(runs[:, 0] & 15) and np.all(runs[:, 1:] - runs[:, :-1] == itemsize):
                return True
    return False


class _Followed(interpreter.InterpreterBuilder):
    """The interpreter's operations, with memory and products replaced."""

    program = _Program()
    memory: ClassVar[dict[int, Array]] = {}  # what is known of it, by address

    def get_bf16(self, value: float) -> Any:
        return interpreter.TensorHandle(np.zeros(1, np.uint16), tl.bfloat16)

    def create_masked_load(self, pointers: Any, mask: Any, *_: Any, **__: Any) -> Any:
        kind = pointers.get_element_ty()
        stored_as = interpreter._get_np_dtype(kind)
        addresses, active = _element_addresses(pointers, mask)
        self.program.load(addresses, active, np.dtype(stored_as).itemsize)
        found = np.zeros(pointers.data.shape, stored_as)
        for start, values in self.memory.items():
            at = (pointers.data.astype(np.int64) - start) // values.itemsize
            inside = (at >= 0) & (at < len(values)) & np.broadcast_to(mask.data, at.shape).astype(bool)
            found[inside] = values[at[inside]]
        return interpreter.TensorHandle(found, kind)

    def create_masked_store(self, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
        self.program.store(*_element_addresses(pointers, mask))

    def create_atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> Any:
        self.create_masked_store(pointers, value, mask)
        addresses, active = _element_addresses(pointers, mask)
        self.program.atomics.append(addresses[active])
        return interpreter.TensorHandle(np.zeros_like(value.data), value.dtype.scalar)

    def create_dot(self, a: Any, b: Any, d: Any, *_: Any) -> Any:
        return interpreter.TensorHandle(np.ones_like(d.data), d.dtype.scalar)


def _element_addresses(pointers: Any, mask: Any) -> tuple[Array, Array]:
    addresses = np.atleast_1d(pointers.data.astype(np.int64))
    active = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
    return addresses, np.atleast_1d(active)


def _zeros(values: Array, _: Any, kind: Any, __: Any) -> Array:
    """In place of the interpreter's conversions between float formats, most of its time."""
    return np.zeros(values.shape, f"uint{kind.primitive_bitwidth}")


def follow(job: Job, l2_bytes: int = 0) -> Traffic:
    """The traffic of a launch; of every program and with memory's share when given the size of the L2 cache.

    Programs then pass through that cache one after another; on a card neighbours run at the same time.

    Raises: RanAway, or whatever the interpreter raises on what it cannot run (inline assembly).
    """
    kernel = resolve(job.kernel)
    function = kernel.rewrite()
    arguments = _arguments(kernel, function, job)
    x, y, z = (*job.launch.grid, 1, 1)[:3]
    grid = (x, y, z)
    builder = interpreter.interpreter_builder
    places_of = {name: _address(position) for position, name in enumerate(kernel.arg_names)}
    builder.memory = {
        places_of[name]: np.asarray(values, INTEGERS[job.launch.args[name]])
        for name, values in job.launch.values.items()
    }
    interpreter._patch_lang(function)
    builder.set_grid_dim(*grid)

    def run(place: tuple[int, int, int]) -> _Program:
        builder.program = _Program()
        builder.set_grid_idx(*place)
        with np.errstate(all="ignore"):
            function(**arguments)
        return builder.program

    if l2_bytes:
        return _every(run, grid, l2_bytes)
    elements = max(1, run((0, 0, 0)).elements)
    places = spread(grid, max(MIN_PROGRAMS, min(MAX_PROGRAMS, _ELEMENTS // elements)))
    common = _Common()
    parts = [common.add(run(place)) for place in places]
    return common.of(total(parts, math.prod(grid) / len(places)), math.prod(grid))


def _every(run: Callable[[tuple[int, int, int]], _Program], grid: tuple[int, int, int], l2_bytes: int) -> Traffic:
    parts, common = [], _Common()
    touched: list[Array] = []
    for place in spread(grid, math.prod(grid)):
        program = run(place)
        stored = np.unique(np.concatenate(program.stores))
        touched += [np.unique(np.concatenate(program.loads)), -1 - stored]  # that are written once, for all neighbours
        parts.append(common.add(program))
    sizes = np.array([len(sectors) for sectors in touched])
    clock = np.repeat(SECTOR * (np.cumsum(sizes) - sizes), sizes)  # bytes that passed before
    sectors = np.concatenate(touched)
    order = np.argsort(sectors, kind="stable")
    again = np.diff(sectors[order]) == 0
    missed = len(sectors) - np.count_nonzero(again & (np.diff(clock[order]) <= l2_bytes))
    return replace(common.of(total(parts, 1.0), len(parts)), memory=float(SECTOR * missed))


def _arguments(kernel: Any, function: Any, job: Job) -> dict[str, Any]:
    constants = interpreter.GridExecutor(function, kernel.arg_names, job.launch.grid).constexprs
    given: dict[str, Any] = {}
    for position, name in enumerate(kernel.arg_names):
        if name not in job.launch.args:
            continue
        value = job.launch.args[name]
        if isinstance(value, FunctionRef):
            value = resolve(value)
        if name in constants:
            given[name] = value
        elif isinstance(value, Descriptor) or str(value).startswith("tensordesc"):
            given[name] = _descriptor(value, _address(position))
        elif isinstance(value, str):
            given[name] = _pointer(value, _address(position))
        elif isinstance(value, float):
            given[name] = tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        else:
            given[name] = interpreter._implicit_cvt(value)
    return inspect.getcallargs(function, **given)


def _address(position: int) -> int:
    return 0x7F00_0000_0000 + (position << 36)


def _pointer(kind: str, address: int) -> Any:
    found = tl.str_to_ty(kind, None)
    return tl.tensor(interpreter.TensorHandle(np.array([address], np.uint64), found), found)


def _descriptor(value: Descriptor | str, address: int) -> Any:
    """A host's tensor descriptor; of one that is told by its type alone no tile crosses the tensor's edge."""
    if isinstance(value, str):
        dtype, sizes = re.fullmatch(r"tensordesc<(\w+)\[([\d, ]+)\].*>", value).groups()  # type: ignore[union-attr]
        block = tuple(int(size) for size in sizes.split(","))
        shape = (_EXTENT,) * len(block)
        value = Descriptor(dtype, shape, tuple(_EXTENT**k for k in reversed(range(len(block)))), block)
    return interpreter.interpreter_semantic.make_tensor_descriptor(
        base=_pointer(f"*{value.dtype}", address), shape=[interpreter._implicit_cvt(size) for size in value.shape],
        strides=[*(interpreter._implicit_cvt(step) for step in value.strides[:-1]), tl.constexpr(1)],
        block_shape=[tl.constexpr(size) for size in value.block], padding_option="zero",
    )  # fmt: skip


def answer(job: Job, l2_bytes: int) -> Traffic | Failed:
    try:
        return follow(job, l2_bytes)
    except Exception as problem:  # the audit then counts bytes from the machine code alone
        return Failed(f"{type(problem).__name__}: {str(problem).splitlines()[-1:]}"[:300], traceback.format_exc())


def _first(value: Any, *_: Any, **__: Any) -> Any:
    """In place of functions of a device's library, which the interpreter does not have."""
    return value


def main() -> None:
    vars(libdevice).update({name: _first for name, found in vars(libdevice).items() if inspect.isfunction(found)})
    interpreter._convert_float = _zeros
    interpret_for_good()
    interpreter.interpreter_builder.__class__ = _Followed
    l2_bytes = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    say, jobs = answers()
    for job in jobs:
        say(answer(job, l2_bytes))


if __name__ == "__main__":
    main()
