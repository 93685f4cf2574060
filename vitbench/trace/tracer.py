"""Runs a model on tensors without data and writes down when each storage comes and goes."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.trace import compiler, hollow
from vitbench.trace.autocast import registered
from vitbench.trace.skeleton import is_composite

#: Called with an operator, its arguments and its result, after it ran.
Watch = Callable[[Any, tuple[Any, ...], Any], None]


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """Without a look at the numbers, which the CPU's checks."""
    if num_classes < 0:
        raise DataDependentOutputException(torch.ops.aten.one_hot.default)
    return x.new_zeros((*x.shape, num_classes)).scatter_(-1, x.unsqueeze(-1), 1)


def _nothing(op: Any, args: tuple[Any, ...], out: Any) -> None: ...


class Tracer(TorchDispatchMode):
    """A mode in which tensors are hollow and every new storage is an event.

    What an operator is made of in Python is not seen: one operator is one kernel, whose results alone are allocated.

    Attributes:
        sizes: bytes of each storage, in the order in which they were seen.
        kinds: what each is for; "" until somebody says.
        events: the number of a storage when it comes, and the number's complement (~number) when it goes.
        now, peak: bytes that are alive, and the most that were.

    Args:
        instead: functions that run instead of an operator, with the same arguments; they call other operators.
        inside: bytes that an operator allocates for itself and frees before it ends.
        watch: is told of every operator after it ran.
    """

    def __init__(
        self,
        instead: Mapping[Any, Callable[..., Any]] | None = None,
        inside: Callable[[Any, tuple[Any, ...], Any], int] | None = None,
        watch: Watch = _nothing,
    ) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.kinds: list[str] = []
        self.events: list[int] = []
        self.now = self.peak = 0
        self._instead = {torch.ops.aten.one_hot.default: _one_hot, **(instead or {})}
        self._found: dict[int, Callable[..., Any] | None] = {}  # by an operator's id, whose hash is slow
        self._inside = inside
        self._watch = watch
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._recording = False
        self._entered = contextlib.ExitStack()
        self._depth = 0

    def __enter__(self) -> Tracer:
        if not self._depth:
            self._entered.enter_context(compiler.absent())
            self._entered.enter_context(hollow.refusing())
            # Under autograd its parts would come, of which one reads the numbers.
            self._entered.enter_context(registered({"one_hot": _one_hot}, "AutogradCPU"))
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._depth -= 1
        if not self._depth:
            self._entered.close()

    @contextlib.contextmanager
    def recording(self, held: Mapping[str, Iterable[Tensor]]) -> Iterator[None]:
        """Writes events down; what is `held`, by kind, is alive before the first.

        Python's collector of cycles rests meanwhile: when it frees something is chance.
        """
        for kind, tensors in held.items():
            for tensor in tensors:
                self.mark(kind, tensor)
        collecting = gc.isenabled()
        gc.disable()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            if collecting:
                gc.enable()

    def mark(self, kind: str, tensor: Tensor) -> None:
        """Says what a tensor's storage is for; the first to say so is right."""
        number = self._see(tensor)
        self.kinds[number] = self.kinds[number] or kind

    def back_to(self, held: int) -> bool:
        """Forgets all storages but the first `held`, whose numbers others then get; False where one is alive."""
        if any(number >= held for number, _ in self._known.values()):
            return False
        del self.sizes[held:], self.kinds[held:]
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled meanwhile
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            instead = self._found[id(func)]
        except KeyError:  # of a composite its parts: torch's own, as `decompose` would prefer Python's, which copy more
            parts = _in_parts(func) if is_composite(func) and not is_whole(func) else None
            instead = self._found[id(func)] = self._instead.get(func, parts)
        if instead is not None:
            with self:
                return instead(*args, **kwargs)
        out = hollow.run(func, args, kwargs)
        if self._recording:
            self._watch(func, args, out)
            for item in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(item, Tensor):
                    self._see(item)
            if self._inside is not None and (size := self._inside(func, args, out)):
                self._free(self._allocate(size))  # beside the results, which a kernel allocates first
        return out

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is not None:
            return known[0]
        number = self._allocate(storage.nbytes())
        self._known[key] = (number, weakref.ref(storage, lambda _: self._forget(key)))
        return number

    def _allocate(self, size: int) -> int:
        number = len(self.sizes)
        self.sizes.append(size)
        self.kinds.append("")
        self.events.append(number)
        self.now += size
        if self.now > self.peak:
            self.peak = self.now
        return number

    def _forget(self, key: int) -> None:
        self._free(self._known.pop(key)[0])

    def _free(self, number: int) -> None:
        if self._recording:
            self.events.append(~number)
        self.now -= self.sizes[number]


_COMPOSITE = DispatchKey.CompositeImplicitAutograd
_AUTOCAST = DispatchKey.AutocastCPU


def _in_parts(op: Any) -> Callable[..., Any]:
    """Runs what `op` is made of, under autocast where that has no rule for the whole, such as for an einsum."""
    parts = partial(op._op_dk, _COMPOSITE)
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _AUTOCAST):
        return parts

    def run(*args: Any, **kwargs: Any) -> Any:
        # A mode is called with autocast excluded; where autocast is off, not to exclude it would put it on.
        with torch._C._SetExcludeDispatchKeyGuard(_AUTOCAST, not torch.is_autocast_enabled("cpu")):
            return parts(*args, **kwargs)

    return run


_WHOLE = ("upsample", "max_pool1d", "lstm", "gru", "rnn_tanh", "rnn_relu")


def is_whole(op: Any) -> bool:
    """Whether a composite is one kernel on a CPU or GPU, and a sequence in Python alone."""
    return str(op.overloadpacket.__name__).lstrip("_").startswith(_WHOLE)


__all__ = ["Tracer", "Watch", "is_whole"]
