"""The process that launches kernels, each held against its reference in fp64; run by `vitbench.doctor.kernels`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from vitkernels import (
    BiasAttentionCase,
    DepthwiseCase,
    GatedAttentionCase,
    ReducedAttentionCase,
    RelativeAttentionCase,
)

from vitbench.audit.workers.interpreting import interpret_for_good
from vitbench.doctor.cases import TRIED, Tried
from vitbench.doctor.check import Check, attempt
from vitbench.kernel_bench import attention, block, depthwise, group
from vitbench.process import answers

_DTYPE = "fp16"  # of the matrix unit, and right in Triton's interpreter, where products of bf16 are not
_OPS: dict[str, tuple[Any, Any]] = {
    "bias_attention": (BiasAttentionCase, attention.bias_problem),
    "relative_attention": (RelativeAttentionCase, attention.relative_problem),
    "gated_attention": (GatedAttentionCase, attention.gated_problem),
    "reduced_attention": (ReducedAttentionCase, block.reduced_problem),
    "depthwise_conv2d": (DepthwiseCase, depthwise.depthwise_problem),
}


def launch(tried: Tried, pass_: str, device: str) -> Check:
    """The check of a case in a pass, "fwd" or "fwd+bwd"."""

    def call() -> str:
        torch.manual_seed(0)
        case, problem_of = _OPS[tried.op]
        problem = problem_of(case(name=tried.what, **tried.case), _DTYPE, device, pass_ == "fwd+bwd")
        fused = next(impl for impl in problem.impls if impl.name == "fused")
        error, limit = group.error_of(problem, fused, _DTYPE, device)
        return f"error {error:.1e}, {limit:.1e} allowed"

    return attempt(f"{tried.op} {pass_}: {tried.what}", call)


def main() -> None:
    """Sends a check for each case and pass, then None."""
    say, _ = answers()
    device = sys.argv[1]
    if device == "cpu":
        interpret_for_good()
    for tried in TRIED:
        if device != "cpu" or not tried.wide:
            for pass_ in tried.passes:
                say(launch(tried, pass_, device))
    say(None)


if __name__ == "__main__":
    main()
