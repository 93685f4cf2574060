"""What may be timed: right implementations in every dtype, and no wrong gradient in any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.bench import check as checking
from vitbench.bench.build import Workload
from vitbench.bench.check import Checker, Incorrect, Unverifiable
from vitbench.bench.failures import classify
from vitbench.bench.plan import Case
from vitbench.results.row import Found
from vitbench.trace.precision import TORCH_DTYPES
from vitbench.verify.outcome import Outcome

#: Small. Rounding in bf16 decides every gradient of the second and third, and even their output.
CASES = {
    "cmt_ti": (64, 64),
    "efficientnet_b0": (64, 64),
    "convmixer_768_32": (28, 28),
    "convit_tiny": (32, 32),
}
#: Changes a model in place; returns what `remove()` undoes.
Change = Callable[[nn.Module], list[Any]]


class Doctored(Workload):
    """A workload whose `sdpa` is eager, in the other layout, after `change`."""

    def __init__(self, change: Change = lambda module: []) -> None:
        super().__init__()
        self.change = change
        self.undo: dict[nn.Module, list[Any]] = {}

    def drop_dtype(self, dtype: torch.dtype) -> None:
        """The next check takes the same models: building them takes longer than running them."""

    def module(self, case: Case, impl: str, dtype: torch.dtype) -> nn.Module:
        if impl != "sdpa":
            return super().module(case, impl, dtype)
        module = super().module(replace(case, layout="nchw"), "eager", dtype)
        for handle in self.undo.get(module, ()):
            handle.remove()
        self.undo[module] = self.change(module)
        return module


def check(workload: Doctored, checker: Checker, case: Case) -> Found:
    found = Found()
    checker._right_in_fp32.clear()
    dtype = TORCH_DTYPES[case.dtype]
    checker.check(case, workload.module(case, case.impl, dtype), workload.input(case, dtype), found)
    return found


def rounded_otherwise(module: nn.Module) -> list[Any]:
    """Every product off by up to half a place of what it is stored in: another order of summation."""
    generator = torch.Generator().manual_seed(3)

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else output.dtype
        noise = torch.rand(output.shape, generator=generator) - 0.5
        return output * (1 + torch.finfo(low).eps * noise).to(output.dtype)

    return [
        layer.register_forward_hook(hook) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]


def times(factor: float, outcome: Outcome, only: str = "") -> Outcome:
    chosen = {name: factor * g for name, g in outcome.gradients.items() if only in ("", name)}
    assert chosen
    return replace(outcome, gradients=outcome.gradients | chosen)


ONE = {"cmt_ti": "stem_conv2.weight", "efficientnet_b0": "blocks.1.1.se.conv_reduce.weight",
       "convmixer_768_32": "blocks.6.0.fn.2.weight", "convit_tiny": "blocks.1.attn.qk.weight"}  # fmt: skip


@pytest.mark.parametrize(("model", "dtype"), [
    *((model, "bf16") for model in CASES), ("cmt_ti", "fp32"), ("efficientnet_b0", "fp32"),
    ("convit_tiny", "fp16"), ("efficientnet_b0", "fp16"), ("efficientnet_b0", "amp"),
])  # fmt: skip
def test_another_rounding_passes_and_no_wrong_gradient_does(
    model: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Doctored(rounded_otherwise)
    checker = Checker(workload)
    run, outcomes = checking.run, dict[object, Outcome]()
    factor, only = 1.0, ""

    def run_once(module: nn.Module, x: Tensor, mode: str, autocast: torch.dtype | None = None) -> Outcome:
        """What a model gives, which takes seconds; a wrong gradient is its gradient times something."""
        key = (module, x.shape, autocast)
        if key not in outcomes:
            outcomes[key] = run(module, x, mode, autocast)
        return times(factor, outcomes[key], only) if module in workload.undo else outcomes[key]

    monkeypatch.setattr(checking, "run", run_once)
    case = Case(model, "sdpa", "train", dtype, "nhwc", CASES[model], 3, "cpu")
    verified = check(workload, checker, case).verified
    assert verified.rel_err_limit is None or 0 < verified.rel_err <= verified.rel_err_limit <= 0.6
    for factor, only in ((0, ""), (2, ""), (-1, ""), (0, ONE[model])):  # noqa: B007 - `run_once` reads them
        with pytest.raises(Incorrect):
            check(workload, checker, case)


def test_what_a_dtype_cannot_tell_is_told_and_verified_in_fp32_once() -> None:
    case = Case("efficientnet_b0", "sdpa", "train", "bf16", "nhwc", (64, 64), 2, "cpu")
    dtypes: list[torch.dtype] = []

    def count(module: nn.Module) -> list[Any]:
        dtypes.append(next(module.parameters()).dtype)
        return []

    workload = Doctored(count)
    checker = Checker(workload)
    found = Found()
    for batch in (2, 4):
        of_batch = replace(case, batch=batch)
        model = workload.module(of_batch, "sdpa", torch.bfloat16)
        found = Found(reason="swapped 3")
        checker.check(of_batch, model, workload.input(of_batch, torch.bfloat16), found)
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert found.reason.startswith("swapped 3; rounding in bf16 decides ")
    assert found.reason.endswith(" of 214 tensors: verified in fp32 too")


def test_what_no_dtype_can_tell_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.verify.judge.CEILING", 1e-7)
    checker = Checker(workload := Doctored())
    case = Case("convit_tiny", "sdpa", "train", "fp32", "nhwc", (32, 32), 2, "cpu")
    with pytest.raises(Unverifiable, match=r"even in fp32 rounding decides \d+ of \d+ tensors") as raised:
        check(workload, checker, case)
    assert classify(raised.value)[0] == "unsupported"


def test_torch_compile_alone_is_not_compiled_again_for_the_check() -> None:
    case = Case("efficientnet_b0", "compile", "train", "bf16", "nhwc", (64, 64), 2, "cpu")
    workload = Doctored(lambda _: [])
    checker = Checker(workload)
    found = check(workload, checker, case)  # with the module as it is: what compiling makes of it is not the point
    assert found.reason.endswith(" of 214 tensors: those are held to their size")
    assert not checker._right_in_fp32
