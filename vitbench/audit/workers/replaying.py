"""Operations of Triton's language in its interpreter that work out types and shapes once for each kind of operands.

An operation such as `a * b` looks at types, shapes and constants, casts and broadcasts, and so asks the builder for
what is computed. Operands of the same types and equal constants lead to the same questions: they are written down the
first time and asked again from then on, which takes a third of the time. What is computed and checked stays as it was.
Private names of Triton 3.6 to 3.8.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from operator import itemgetter
from types import NoneType
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

_KEPT = 2_000  # of an operation: each constant that a loop counts up makes one
#: What the builder makes of constants alone is a constant.
_FOLDED = ("get_", "create_splat", "create_broadcast", "create_int_cast", "create_si_to_fp", "create_fp_")


class _Varies(Exception):
    """An operation that may depend on more than types and constants."""


def _of_tensor(value: Any, handles: list[Any]) -> Any:
    if type(value.handle) is not TensorHandle:
        raise _Varies
    handles.append(value.handle)
    return value.type.name


def _of_several(values: Any, handles: list[Any]) -> Any:
    return type(values), *[_kind(value, handles) for value in values]


def _of_slice(value: Any, handles: list[Any]) -> Any:
    return (builtins.slice, *(_kind(one, handles) for one in (value.start, value.stop, value.step)))


_KINDS: dict[type, Callable[[Any, list[Any]], Any]] = {
    tl.tensor: _of_tensor,
    tl.constexpr: lambda value, handles: (tl.constexpr, _kind(value.value, handles)),
    builtins.slice: _of_slice,
    **dict.fromkeys((int, bool, float, str, NoneType), lambda value, _: (type(value), value)),  # 1 equals True and 1.0
    **dict.fromkeys((tl.dtype, tl.block_type, tl.pointer_type), lambda value, _: (type(value), value.name)),
    **dict.fromkeys((list, tuple, tl.tuple), _of_several),
}


def _kind(value: Any, handles: list[Any]) -> Any:
    """What an operand tells of an operation, as a key; its tensors' handles are added to `handles`. Raises: _Varies."""
    try:
        return _KINDS[type(value)](value, handles)
    except KeyError:
        raise _Varies from None


def _apart(value: Any, handles: list[Any]) -> Any:
    """The operand with a handle of its own, added to `handles`, for each tensor: `x * x` has one handle for two."""
    if type(value) is tl.tensor:
        handles.append(TensorHandle(value.handle.data, value.handle.dtype))
        return tl.tensor(handles[-1], value.type)
    if type(value) in (list, tuple, tl.tuple):
        return type(value)([_apart(one, handles) for one in value])
    return value


class _Recorder:
    """A builder that writes down what it is asked: the method, and its arguments as places in a list of values.

    That list begins with the handles of the operands and goes on with every result; constants stand in another.
    """

    def __init__(self, builder: Any, operands: list[Any]) -> None:
        self.builder = builder
        self.values = list(operands)
        self.constants: list[Any] = []
        self.calls: list[tuple[str, list[tuple[bool, int]]]] = []
        self.varies = False

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.builder, name)
        if not callable(member):
            return member

        def call(*arguments: Any, **named: Any) -> Any:
            result = member(*arguments, **named)
            if not name.startswith("create_") and not isinstance(result, TensorHandle):
                return result  # a type, made from types
            places = [self.place(one) for one in arguments]
            self.varies |= bool(named) or type(result) not in (TensorHandle, NoneType)
            if name.startswith(_FOLDED) and all(constant for constant, _ in places):
                result.data.flags.writeable = False
                self.constants.append(result)
            else:
                self.calls.append((name, places))
                self.values.append(result)
            return result

        return call

    def place(self, value: Any) -> tuple[bool, int]:
        """Whether it is a constant, and where it stands."""
        for constant, known in ((False, self.values), (True, self.constants)):
            for number in reversed(range(len(known))):
                if known[number] is value and (constant or value is not None):
                    return constant, number
        parts = value if isinstance(value, (list, tuple)) else [value]
        self.varies |= any(isinstance(part, TensorHandle) for part in parts)
        self.constants.append(value)
        return True, len(self.constants) - 1


def _pick(places: list[int]) -> Callable[[list[Any]], Any]:
    """Takes what stands at some places of a list, as a sequence."""
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


class _Recording:
    """What an operation asked the builder, and how its result is put together."""

    def __init__(self, recorder: _Recorder, operands: int, result: Any) -> None:
        at = recorder.place(result.handle)
        self.constants = recorder.constants

        def place(constant: bool, number: int) -> int:
            return number + (operands if constant else len(self.constants) if number >= operands else 0)

        self.calls = [(name, _pick([place(*one) for one in places])) for name, places in recorder.calls]
        self.made = {name: value for name, value in vars(result).items() if name != "handle"}
        self.result = place(*at)

    def replay(self, builder: Any, handles: list[Any]) -> Any:
        handles += self.constants
        for name, arguments in self.calls:
            handles.append(getattr(builder, name)(*arguments(handles)))
        made = tl.tensor.__new__(tl.tensor)
        made.__dict__ = {**self.made, "handle": handles[self.result]}
        return made


def _record(member: Callable[..., Any], builder: Any, operands: tuple[Any, ...], named: Any) -> tuple[Any, Any]:
    """The result of an operation, and its recording, None where it may depend on more."""
    handles: list[Any] = []
    fresh = [_apart(one, handles) for one in operands]
    fresh_named = {name: _apart(one, handles) for name, one in named.items()}
    recorder = _Recorder(builder, handles)
    tested, index = tl.tensor.__bool__, tl.tensor.__index__

    def looks(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def look(value: Any) -> Any:
            recorder.varies |= value.handle.data.size == 1  # of several elements the answer is always the same
            return before(value)

        return look

    tl.tensor.__bool__, tl.tensor.__index__ = looks(tested), looks(index)
    try:
        result = member(*fresh, **fresh_named, _semantic=TritonSemantic(recorder))
    finally:
        tl.tensor.__bool__, tl.tensor.__index__ = tested, index
    if type(result) is not tl.tensor:
        return result, None
    recording = _Recording(recorder, len(handles), result)  # a result from elsewhere varies
    return result, None if recorder.varies else recording


def replaying(member: Callable[..., Any]) -> Callable[..., Any]:
    """A builtin of the language as the interpreter's kernels call it."""
    recordings: dict[Any, _Recording | None] = {}

    def operation(*operands: Any, _semantic: Any = None, **named: Any) -> Any:
        if _semantic is not None:  # asked by another operation
            return member(*operands, **named, _semantic=_semantic)
        handles: list[Any] = []
        try:
            key = tuple([_kind(one, handles) for one in operands])
            if named:
                key += tuple([(name, _kind(one, handles)) for name, one in named.items()])
        except _Varies:
            return member(*operands, **named, _semantic=interpreter.interpreter_semantic)
        builder = interpreter.interpreter_builder
        if recording := recordings.get(key):
            return recording.replay(builder, handles)
        if key in recordings:
            return member(*operands, **named, _semantic=interpreter.interpreter_semantic)
        result, recordings[key] = _record(member, builder, operands, named)
        if len(recordings) > _KEPT:
            recordings.clear()
        return result

    return operation
