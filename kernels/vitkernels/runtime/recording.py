"""What a launcher launches, read off example tensors: the launcher runs, its kernels do not."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, type_canonicalisation_dict
from triton.tools.tensor_descriptor import TensorDescriptor

from vitkernels.runtime.launch import Descriptor, Launch

_OPTIONS = {"num_warps": 4, "num_stages": 3}
_LEFT_OUT = {"debug", "warmup", "grid", "sanitize_overflow"}


def launches_of(
    function: Callable[..., object],
    *examples: object,
    case: str,
    op: str = "",
    elements: int | None = None,
    work: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Launch]:
    """The launches that function(*examples) makes, for `audit_launches`.

    The function runs on tensors of the meta device, so nothing is computed and no GPU is needed. Grid, strides,
    alignment, dtypes, warps and compile options are as it gives them, heuristics included. Of a kernel under
    @triton.autotune every configuration that its pruning leaves is a launch.

    Args:
        examples: tensors (`torch.empty(..., device="meta")`) and whatever else the function takes by position.
        case: the shape's name.
        op: the operation, default the function's name.
        elements: what the audit divides issue slots by, default the elements of each launch's largest tensor.
        work: by a kernel's name, further fields of its `Launch`, such as {"matmul_kernel": {"matrix_flops": 2**31}}.
            Unless told otherwise a launch moves every tensor that it is given once, and multiplies nothing.

    Returns: one `Launch` a kernel launch, in order; the pass is the kernel's name, numbered where it is launched again.

    Raises: ValueError when nothing is launched, or a tensor has a dtype that Triton does not know; whatever the
        function raises.
    """
    found: list[Launch] = []
    seen: Counter[str] = Counter()

    def record(kernel: Any, label: str, args: Mapping[str, Any], grid: Sequence[int], given: Mapping[str, Any]) -> None:
        name = kernel.fn.__name__.lstrip("_") + label
        seen[name] += 1
        numbered = name if seen[name] == 1 else f"{name}-{seen[name]}"
        described = _described(kernel, args, grid, given)
        described |= {"elements": elements or described["elements"], **(work or {}).get(kernel.fn.__name__, {})}
        own = op or getattr(function, "__name__", type(function).__name__)
        found.append(Launch(op=own, case=case, pass_name=numbered, **described))

    with _recorded(record):
        function(*examples)
    if not found:
        raise ValueError(
            f"{op or function} launched no Triton kernel with these examples, so there is nothing to audit"
        )
    return found


@contextmanager
def _recorded(record: Callable[..., None]) -> Iterator[None]:
    """While it lasts, kernels are recorded and not run."""
    labels = [""]

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        parameters = inspect.signature(kernel.fn).parameters
        names = list(parameters)
        bound = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        bound |= dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in parameters}
        extents = grid(bound) if callable(grid) else grid
        extents = (extents,) if isinstance(extents, int) else tuple(int(extent) for extent in extents)
        if 0 not in extents:
            given = {k: v for k, v in kwargs.items() if k not in parameters and k not in _LEFT_OUT}
            record(kernel, labels[-1], bound, extents, given)

    def every(tuner: Any, *args: Any, **kwargs: Any) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        for config in tuner.prune_configs(kwargs):
            chosen = config.all_kwargs()
            if config.pre_hook:
                config.pre_hook({**tuner.nargs, **kwargs, **chosen})
            parts = [f"{name}={value}" for name, value in config.kwargs.items()]
            labels.append("+".join([labels[-1], *parts, f"w{config.num_warps}", f"s{config.num_stages}"]))
            tuner.fn.run(*args, **kwargs, **chosen)
            labels.pop()

    before = {kind: kind.run for kind in (JITFunction, InterpretedFunction, Autotuner)}
    JITFunction.run = InterpretedFunction.run = run
    Autotuner.run = every
    try:
        yield
    finally:
        for kind, method in before.items():
            kind.run = method


def _described(kernel: Any, args: Mapping[str, Any], grid: Sequence[int], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Launch` that arguments tell."""
    tensors = {n: v.base if isinstance(v, TensorDescriptor) else v for n, v in args.items()}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    floating = [value for value in tensors.values() if value.is_floating_point()] or [*tensors.values()]
    return {
        "kernel": kernel,
        "dtype": _triton_type(floating[0]) if floating else "none",
        "args": {name: _argument(value) for name, value in args.items()},
        "grid": tuple(grid),
        "elements": max((value.numel() for value in tensors.values()), default=math.prod(grid)),
        "bytes": sum(_bytes(value) for value in {id(value): value for value in tensors.values()}.values()),
        "unaligned": frozenset(
            name for name, value in tensors.items() if value.storage_offset() * value.element_size() % 16
        ),
        **{name: given.get(name, usual) for name, usual in _OPTIONS.items()},
        "options": {name: value for name, value in given.items() if name not in _OPTIONS and value is not None},
    }


def _argument(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        sizes = (tuple(map(int, part)) for part in (value.shape, value.strides, value.block_shape))
        return Descriptor(_triton_type(value.base), *sizes)
    if isinstance(value, Tensor):
        return "*" + _triton_type(value)
    return value.value if type(value).__name__ == "constexpr" else value


def _triton_type(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in type_canonicalisation_dict:
        raise ValueError(f"Triton has no type for {tensor.dtype}")
    return str(type_canonicalisation_dict[name])


def _bytes(tensor: Tensor) -> int:
    """Those of its elements, where a dimension of stride 0 repeats none."""
    own = itertools.compress(tensor.shape, tensor.stride())
    return int(math.prod(own)) * tensor.element_size() if tensor.numel() else 0
