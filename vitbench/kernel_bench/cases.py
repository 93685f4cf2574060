"""Every problem there is, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vitkernels import (
    BIAS_ATTENTION_CASES,
    DEPTHWISE_CONV2D_CASES,
    GATED_ATTENTION_CASES,
    REDUCED_ATTENTION_CASES,
    RELATIVE_ATTENTION_CASES,
)

from vitbench.errors import InputError, nearest
from vitbench.kernel_bench import attention, block, depthwise
from vitbench.kernel_bench.problem import DTYPES, PASSES, Problem
from vitbench.patterns import matches

_FIRST = (
    "relative_attention/coatnet_0-s3-224",
    "reduced_attention/cmt_s-a-224",
    "bias_attention/cmt_s-a-224",
    "depthwise_conv2d/convmixer_1536_20",
    "depthwise_conv2d/cmt_s-a-irffn",
    "gated_attention/convit_small-224",
    "bias_attention/coatnet_0-s3-224",
    "depthwise_conv2d/cmt_s-a-lpu",
    "depthwise_conv2d/convmixer_768_32",
)


@dataclass(frozen=True)
class _Kernel:
    cases: Sequence[Any]
    small: Callable[[Any], Any]
    problem: Callable[[Any, str, str, bool], Problem]
    suffix: Callable[[Any], str]


# Cases go by the names that the audit's tables give them.
_KERNELS = {
    "relative_attention": _Kernel(
        RELATIVE_ATTENTION_CASES, attention.small_relative, attention.relative_problem, lambda case: ""
    ),
    "bias_attention": _Kernel(BIAS_ATTENTION_CASES, attention.small_bias, attention.bias_problem, lambda case: ""),
    "reduced_attention": _Kernel(
        REDUCED_ATTENTION_CASES, block.small_reduced, block.reduced_problem, lambda case: f"-b{case.B}"
    ),
    "gated_attention": _Kernel(GATED_ATTENTION_CASES, attention.small_gated, attention.gated_problem, lambda case: ""),
    "depthwise_conv2d": _Kernel(
        DEPTHWISE_CONV2D_CASES, depthwise.small_depthwise, depthwise.depthwise_problem, lambda case: f"-b{case.B}-nhwc"
    ),
}


@dataclass(frozen=True)
class Planned:
    """A problem that is not built yet; `build` makes the same random inputs every time."""

    kernel: str
    case: str
    pass_: str
    dtype: str
    build: Callable[[], Problem]

    @property
    def id(self) -> str:
        """kernel/case/pass/dtype."""
        return f"{self.kernel}/{self.case}/{self.pass_}/{self.dtype}"


def _build(kernel: _Kernel, case: Any, dtype: str, device: str, train: bool) -> Problem:
    torch.manual_seed(0)
    return kernel.problem(case, dtype, device, train)


def plan(pattern: str, device: str, dtypes: Sequence[str]) -> list[Planned]:
    """Problems whose id (kernel/case/pass/dtype) matches, by dtype in the order given, the most telling cases first.

    On the CPU the shapes are small ones, and their names end in "-small": times there only prove the benchmark.

    Raises: InputError when a dtype is unknown or nothing matches.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; {nearest(dtype, DTYPES)}")
    found = []
    for name, kernel in _KERNELS.items():
        for case in kernel.cases:
            small = device == "cpu"
            shape = kernel.small(case) if small else case
            label = case.name + kernel.suffix(case) + ("-small" if small else "")
            for pass_ in PASSES:
                for dtype in dtypes:
                    build = partial(_build, kernel, shape, dtype, device, pass_ == "fwd+bwd")
                    found.append(Planned(name, label, pass_, dtype, build))
    chosen = [planned for planned in found if matches(planned.id, pattern)]
    if not chosen:
        raise InputError(f"no kernel case matches {pattern!r}; ids are kernel/case/pass/dtype such as {found[0].id}")

    def rank(planned: Planned) -> tuple[int, int]:
        name = f"{planned.kernel}/{planned.case}"
        place = next((i for i, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST))
        return dtypes.index(planned.dtype), place

    return sorted(chosen, key=rank)
