"""What only a process without Triton's interpreter can show: the CPU reference path, and compilation for any GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vitbench.audit.run import audit

REFERENCE_PATH = """
import sys
import torch
from vitkernels import *

assert "vitbench" not in sys.modules
torch.manual_seed(0)
B, H, grid, D = 2, 2, (2, 3), 16
N = grid[0] * grid[1]
cases = {
    "bias": (bias_attention, bias_attention_reference, [(H, N, N)]),
    "relative": (lambda *x: relative_attention(*x, grid), lambda *x: relative_attention_reference(*x, grid), [(15, H)]),
    "gated": (gated_attention, gated_attention_reference, [(H, N, N), (H,)]),
}
for name, (op, reference, extra) in cases.items():
    inputs = [torch.randn(B, H, N, D, dtype=torch.float64) for _ in range(3)]
    inputs += [torch.randn(shape, dtype=torch.float64) for shape in extra]
    inputs = [x.requires_grad_() for x in inputs]
    grad = torch.randn(B, H, N, D, dtype=torch.float64)
    got, want = op(*inputs), reference(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got.transpose(1, 2).is_contiguous()
    for a, b in zip(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    few = [x[:1] if x.ndim == 4 else x for x in inputs]  # it moves each number by itself
    assert torch.autograd.gradcheck(op, [x.detach().requires_grad_() for x in few])
    low = [x.detach().float() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*low)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), want, rtol=0.03, atol=0.03)
    print(name, "ok")
"""

WATCHED = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from vitkernels import *

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))

torch.manual_seed(0)
B, H, grid, D = 2, 2, (3, 4), 16
N = grid[0] * grid[1]
tokens = [torch.randn(B, H, N, D, requires_grad=True) for _ in range(3)]
def leaf(*shape):
    return torch.randn(shape, requires_grad=True)
products = 2 * B * H * N * N * D
taps = 2 * B * 4 * 8 * 8 * 9
cases = {
    "bias": (bias_attention, [*tokens, leaf(H, N, N)], 5 * products),
    "relative": (lambda *x: relative_attention(*x, grid), [*tokens, leaf(35, H)], 5 * products),
    "gated": (gated_attention, [*tokens, leaf(H, N, N), leaf(H)], 5 * products),
    "depthwise": (lambda *x: depthwise_conv2d(*x, activation="gelu"), [leaf(B, 4, 8, 8), leaf(4, 1, 3, 3)], 2 * taps),
}
for name, (op, inputs, flops) in cases.items():
    want = torch.autograd.grad(op(*inputs).sum(), inputs)
    counter = FlopCounterMode(display=False)
    for mode in (counter, Watch()):
        loss = op(*inputs).sum()
        with mode:
            got = torch.autograd.grad(loss, inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert counter.get_total_flops() == flops, (counter.get_total_flops(), flops)
    print(name, "ok")
"""


def ok(*names: str) -> list[str]:
    return [word for name in names for word in (name, "ok")]


def run(script: str, *arguments: str) -> str:
    """Standard output of a Python process like this one, but without TRITON_INTERPRET."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_cpu_tensors_are_computed_by_the_reference_and_dispatch_modes_watch_its_backward_pass() -> None:
    names = ("bias", "relative", "gated")
    assert run(REFERENCE_PATH + WATCHED).split() == [*ok(*names), *ok(*names, "depthwise")]


@pytest.mark.parametrize(
    ("module", "pattern"),
    [
        ("attention.relative", "*/coatnet_0-s4-224/*"),
        ("attention.bias", "*/cmt_s-d-224/*"),
        ("attention.gated", "*/convit_tiny-224/*"),
    ],
)
def test_kernels_compile_without_spills_and_use_the_matrix_unit(module: str, pattern: str) -> None:
    rows = [one.row for one in audit([f"vitkernels.{module}"], pattern, (80, 90, 100), 2, counted=False)]
    assert {row.arch for row in rows} == {"sm_80", "sm_90", "sm_100"}
    for row in rows:
        assert row.status == "compiled", f"{row.key}: {row.reason}"
        assert row.spill_bytes == 0, row.key
        products = row.pass_ in ("fwd", "bwd", "bwd_key", "bwd_qkv") or row.pass_.startswith("bwd_query")
        if row.arch == "sm_90" and products:
            assert row.matrix_instruction == "HGMMA", row.key
