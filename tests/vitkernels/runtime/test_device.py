"""What the kernels ask about the device they run on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import vitkernels
from torch._subclasses.fake_tensor import FakeTensorMode
from vitkernels.runtime import device


def test_importing_the_kernels_leaves_torch_compile_alone() -> None:
    program = "import sys, vitkernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_architecture_is_a_constant_to_torch_compile() -> None:
    """The mark that is set by hand is the one that torch's own decorator sets."""

    def decorated() -> None:
        pass

    torch.compiler.assume_constant_result(decorated)
    assert vars(decorated) == vars(device._arch_of_gpu)


OPERATORS = (
    "bias_attention_fwd", "bias_attention_bwd", "relative_attention_fwd", "relative_attention_bwd",
    "expand_relative_bias", "gated_attention_fwd", "gated_attention_bwd", "reduced_attention_block",
    "depthwise_conv2d", "depthwise_conv2d_backward",
)  # fmt: skip


@pytest.mark.parametrize("key", ["CPU", "CUDA", "HIP", "XPU", "MPS", "HPU", "PrivateUse1"])
def test_every_device_has_every_operator(key: str) -> None:
    found = [torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"vitkernels::{op}", key) for op in OPERATORS]
    assert found == [True] * len(OPERATORS)


def test_kernels_run_on_nvidia_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        nvidia, *others = (torch.empty(1, device=kind) for kind in ("cuda", "xpu", "mps"))
        assert device.kernels_run_on(nvidia)
        assert not any(device.kernels_run_on(tensor) for tensor in others)
        assert [device.arch_of(tensor) for tensor in others] == [90, 90]
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert not device.kernels_run_on(nvidia)
        assert device.arch_of(nvidia) == 90  # nobody asks AMD's card for a compute capability


@pytest.mark.parametrize("autocast", [False, True])
def test_a_device_without_kernels_gets_the_references(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU where Triton does not interpret goes the way of every such device.

    In fp64, as the gate's gradient is a sum that cancels: how far off it is in fp32 is the processor's luck.
    """
    monkeypatch.setattr(device, "INTERPRETED", False)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1, 6, 16) for _ in range(3))
    bias, table, gate = torch.randn(1, 6, 6), torch.randn(15, 1), torch.randn(1)
    image, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    pairs = (
        (vitkernels.bias_attention, vitkernels.bias_attention_reference, (q, k, v, bias)),
        (vitkernels.relative_attention, vitkernels.relative_attention_reference, (q, k, v, table, (2, 3))),
        (vitkernels.gated_attention, vitkernels.gated_attention_reference, (q, k, v, bias, gate)),
        (vitkernels.depthwise_conv2d, vitkernels.depthwise_conv2d_reference, (image, weight)),
    )
    for operation, reference, given in pairs:
        results = []
        for function in (operation, reference):
            dtype = torch.float32 if autocast else torch.float64
            leaves = [x.to(dtype, copy=True).requires_grad_() if isinstance(x, torch.Tensor) else x for x in given]
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast and function is operation):
                out = function(*leaves)
            out.float().square().sum().backward()
            results.append([out, *(x.grad for x in leaves if isinstance(x, torch.Tensor))])
        low = 0.1 if autocast else 1e-12
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours.to(dtype), theirs, atol=low * theirs.abs().max().item(), rtol=0)
