"""The lists of CUDA's autocast, and that they are followed on CPU tensors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vitbench.trace import autocast
from vitbench.trace.tracer import Tracer

HALF, FULL = torch.float16, torch.float32


def listed(header: str, macro: str) -> set[str]:
    start = header.index(f"#define {macro}(_)")
    block = header[start : header.index("\n\n", start)]
    found = re.findall(r"_\((\w+)(?:, *(\w+))?\)", block)
    # torch 2.11 lists its named dimensions too, which no operator takes any more.
    return {f"{name}.{kind}" if kind else name for name, kind in found if "imname" not in kind}


def test_the_lists_are_those_of_the_installed_torch() -> None:
    path = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not path.exists():
        pytest.skip("torch is installed without its headers")
    header = path.read_text()
    known = {name for name in autocast.FP32 if autocast.overload(name)}
    assert listed(header, "AT_FORALL_FP32") <= set(autocast.FP32)
    assert {name.split(".")[0] for name in known} - {"rms_norm"} <= {
        name.split(".")[0] for name in listed(header, "AT_FORALL_FP32")
    }
    assert listed(header, "AT_FORALL_FP32_SET_OPT_DTYPE") == set(autocast.FP32_RESULT)
    assert listed(header, "AT_FORALL_PROMOTE") == set(autocast.WIDEST)
    on_both = {"conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "addbmm", "prelu"}
    assert listed(header, "AT_FORALL_LOWER_PRECISION_FP") >= on_both | set(autocast.LOWER_NOT_ON_CPU)


def test_operators_run_in_the_dtype_that_cuda_takes() -> None:
    with Tracer(), autocast.policy(HALF), autocast.enabled(HALF):
        x = torch.empty(2, 3, 8, 8, dtype=HALF)
        weight = torch.empty(8, 8, requires_grad=True)
        y = F.linear(x, weight)
        assert y.dtype is HALF
        assert F.layer_norm(y, (8,)).dtype is FULL
        assert y.softmax(-1).dtype is FULL
        assert y.softmax(-1, dtype=torch.float64).dtype is torch.float64
        assert y.sum().dtype is FULL
        assert y.sum(-1, keepdim=True).dtype is FULL
        assert y.norm(dim=-1).dtype is FULL
        assert (y**2).dtype is FULL
        assert F.gelu(y).dtype is HALF
        assert F.interpolate(y, scale_factor=2, mode="bilinear").dtype is FULL
        assert F.cross_entropy(y.flatten(1), torch.empty(2, dtype=torch.long)).dtype is FULL
        assert torch.mv(y[0, 0], y[0, 0, 0]).dtype is HALF
        assert torch.addcmul(y, y, torch.empty(8)).dtype is FULL
        assert torch.is_autocast_enabled("cuda")


def test_nothing_is_left_behind() -> None:
    with autocast.policy(torch.bfloat16), autocast.enabled(torch.bfloat16):
        pass
    assert not torch.is_autocast_enabled("cuda")
    with torch.autocast("cpu", torch.bfloat16):
        assert F.layer_norm(torch.ones(2, 8, dtype=torch.bfloat16), (8,)).dtype is torch.bfloat16
