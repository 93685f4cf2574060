"""Operations of the interpreter's language replayed: bit for bit what Triton's own are, whatever came before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from vitkernels.runtime.call import sum_parts_kernel

from vitbench.audit.workers.replaying import replaying

TYPES = {tl.float16: np.float16, tl.float32: np.float32, tl.int32: np.int32, tl.int64: np.int64, tl.int1: np.bool_}


@pytest.fixture(autouse=True)
def _interpreted(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--device") != "cpu":
        pytest.skip("nothing is interpreted on a GPU")
    interpreter._patch_lang(sum_parts_kernel.fn)  # for good: the language is then the interpreter's


def tensor(kind: tl.dtype, *shape: int) -> tl.tensor:
    values = np.random.default_rng(sum(shape)).integers(-9, 9, shape or 1).astype(TYPES[kind])
    return tl.tensor(TensorHandle(values, kind), tl.block_type(kind, list(shape)) if shape else kind)


def same(got: Any, want: Any) -> None:
    assert (got.type, got.dtype, got.shape.values, got.numel.value) == (
        want.type, want.dtype, want.shape.values, want.numel.value,
    )  # fmt: skip
    assert got.handle.dtype == want.handle.dtype
    assert got.handle.data.dtype == want.handle.data.dtype
    assert got.handle.data.shape == want.handle.data.shape
    assert got.handle.data.tobytes() == want.handle.data.tobytes()


def counted(function: Callable[..., Any]) -> tuple[list[int], Callable[..., Any]]:
    calls: list[int] = []

    def member(*operands: Any, _semantic: Any) -> Any:
        calls.append(1)
        return function(_semantic, *operands)

    return calls, member


OPERATIONS = {
    "add": lambda s, a, b: s.add(a, b, True),
    "sub": lambda s, a, b: s.sub(a, b, True),
    "mul": lambda s, a, b: s.mul(a, b, True),
    "truediv": lambda s, a, b: s.truediv(a, b),
    "less": lambda s, a, b: s.less_than(a, b),
    "where": lambda s, a, b: s.where(s.less_than(a, b), a, b),
    "twice": lambda s, a, b: s.add(s.mul(a, a, True), s.mul(a, b, True), True),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_equals_the_operation_itself(name: str) -> None:
    """Constants that equal each other but differ, operands that are one tensor or two, types, ranks and shapes."""
    _, member = counted(OPERATIONS[name])
    replayed = replaying(member)
    whole, half = tensor(tl.int32, 4, 8), tensor(tl.float16, 4, 8)
    row, column = tensor(tl.float32, 1, 8), tensor(tl.float32, 4, 1)
    for a, b in [
        (row, row), (row, tensor(tl.float32, 1, 8)), (column, row), (row, column), (half, row), (whole, whole),
        (row, 0.0), (row, -0.0), (row, 1), (row, 1.0), (half, 2.5), (whole, 1), (whole, 1.0), (whole, True), (whole, 3),
        (whole, tensor(tl.int64)),
        (tensor(tl.float32), row), (tensor(tl.int32), tensor(tl.int32)), (2, tensor(tl.int32)),
    ]:  # fmt: skip
        want = member(a, b, _semantic=interpreter.interpreter_semantic)
        for _ in range(2):
            same(replayed(a, b), want)


def test_other_values_of_the_same_kind_are_computed_with_and_looked_up_once() -> None:
    calls, member = counted(OPERATIONS["twice"])
    replayed = replaying(member)
    a, b = (
        tensor(tl.float32, 16),
        tl.tensor(TensorHandle(np.arange(16, dtype=np.float32), tl.float32), tensor(tl.float32, 16).type),
    )
    replayed(a, a)
    got = [replayed(a, b), replayed(b, a), replayed(b, b)]
    assert len(calls) == 1
    for (x, y), one in zip([(a, b), (b, a), (b, b)], got, strict=True):
        assert np.array_equal(one.handle.data, x.handle.data * x.handle.data + x.handle.data * y.handle.data)


def test_what_looks_at_numbers_or_takes_them_from_elsewhere_is_asked_every_time() -> None:
    def clipped(semantic: Any, a: Any, b: Any) -> Any:
        return semantic.add(a, b, True) if b else a

    elsewhere = tensor(tl.float32, 8)
    for function, other in ((clipped, tensor(tl.int32)), (lambda s, a, b: s.add(elsewhere, b, True), 1.0)):
        calls, member = counted(function)
        replayed = replaying(member)
        a = tensor(tl.float32, 8)
        for number in range(1, 4):
            elsewhere.handle = TensorHandle(elsewhere.handle.data + 1, tl.float32)
            if isinstance(other, tl.tensor):
                other.handle.data = np.array([number - 2], np.int32)
            same(replayed(a, other), member(a, other, _semantic=interpreter.interpreter_semantic))
        assert len(calls) == 6


def test_stores_happen_every_time() -> None:
    memory = np.zeros(8, np.float32)
    pointer = tl.pointer_type(tl.float32)
    at = tl.tensor(
        TensorHandle(memory.ctypes.data + 4 * np.arange(8, dtype=np.uint64), pointer), tl.block_type(pointer, [8])
    )
    store = replaying(lambda at, value, _semantic: _semantic.store(at, value, None, (), "", ""))
    for number in range(3):
        values = np.full(8, number, np.float32)
        store(at, tl.tensor(TensorHandle(values, tl.float32), tl.block_type(tl.float32, [8])))
        assert np.array_equal(memory, values)
