"""depthwise_conv2d inside PyTorch: layouts, errors, autocast, compile, export, fake tensors, FLOP counts, opcheck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from vitkernels.depthwise.activations import ACTIVATIONS, activate, activate_with_slope
from vitkernels.depthwise.conv import (
    batch_norm_affine,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    depthwise_conv2d_stats,
    depthwise_conv2d_work,
)


def inputs(device: str, dtype: torch.dtype = torch.float16, k: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 8, 8, generator=g).to(device, dtype).to(memory_format=torch.channels_last)
    return x, torch.randn(6, 1, k, k, generator=g).to(device, dtype)


@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_result_keeps_the_layout(k: int, stride: int, device: str) -> None:
    x, weight = inputs(device, k=k)
    for layout in (torch.channels_last, torch.contiguous_format):
        laid = x.detach().contiguous(memory_format=layout).requires_grad_()
        y = depthwise_conv2d(laid, weight, stride=stride)
        assert y.shape == F.conv2d(x.float(), weight.float(), None, stride, k // 2, groups=6).shape
        assert y.is_contiguous(memory_format=layout)
        y.sum().backward()
        assert laid.grad.is_contiguous(memory_format=layout)


def test_stride_and_padding_as_pairs(device: str) -> None:
    x, weight = inputs(device)
    assert torch.equal(depthwise_conv2d(x, weight, None, (2, 2), [1, 1]), depthwise_conv2d(x, weight, None, 2, 1))
    for wrong in ((1, 2), (1, 1, 1), 1.5, "same"):
        with pytest.raises(ValueError, match=r"stride .* should be one integer"):
            depthwise_conv2d(x, weight, None, wrong)
        with pytest.raises(ValueError, match=r"padding .* should be one integer"):
            depthwise_conv2d(x, weight, None, 1, wrong)


def test_a_weight_without_dimensions(device: str) -> None:
    x, _ = inputs(device)
    with pytest.raises(ValueError, match=r"weight \[\] should be \[C, 1, k, k\]"):
        depthwise_conv2d(x, torch.tensor(1.0, device=device))


def test_fp64_in_the_interpreter_is_as_accurate_as_fp32(device: str) -> None:
    if device != "cpu":
        pytest.skip("fp64 is for the CPU")
    x, weight = (t.requires_grad_() for t in inputs(device, torch.float64))
    got = depthwise_conv2d(x, weight, activation="gelu")
    want = depthwise_conv2d_reference(x, weight, activation="gelu")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for ours, exact in zip(
        torch.autograd.grad(got.sum(), (x, weight)), torch.autograd.grad(want.sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-5)


@triton.jit
def _activation_kernel(
    u_ptr, a_ptr, b_ptr, slope_ptr, n, ACT: tl.constexpr, PRECISE: tl.constexpr, BLOCK: tl.constexpr
):  # type: ignore[no-untyped-def]
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u = tl.load(u_ptr + offs, mask=offs < n, other=0.0)
    tl.store(a_ptr + offs, activate(u, ACT, PRECISE), mask=offs < n)
    b, slope = activate_with_slope(u, ACT, PRECISE)
    tl.store(b_ptr + offs, b, mask=offs < n)
    tl.store(slope_ptr + offs, slope, mask=offs < n)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("precise", [False, True])
def test_activations_to_rounding(act: str, precise: bool, device: str) -> None:
    """At every bf16 and fp16 value up to 12: within a quarter of bf16's half ulp (fp32 accuracy when precise)."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    u = torch.cat([bits.view(d).float() for d in (torch.bfloat16, torch.float16)])
    u = u[u.isfinite() & (u.abs() <= 12)].to(device)
    a, b, slope = (torch.empty_like(u) for _ in range(3))
    _activation_kernel[(triton.cdiv(len(u), 4096),)](u, a, b, slope, len(u), ACT=act, PRECISE=precise, BLOCK=4096)
    exact_in = u.double().cpu().requires_grad_()
    functions = {
        "none": lambda t: t * 1,
        "relu": F.relu,
        "silu": F.silu,
        "gelu": lambda t: t * torch.special.ndtr(t),
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    }
    exact = functions[act](exact_in)
    exact.sum().backward()
    relative, absolute = (4e-6, 1e-6) if precise else (2.0**-9 / 4, 1e-7)
    for name, value in (("activate", a), ("activate_with_slope", b)):
        error = (value.double().cpu() - exact.detach()).abs()
        assert (error <= relative * exact.detach().abs() + absolute).all(), f"{name}: {error.max()}"
    assert (slope.double().cpu() - exact_in.grad).abs().max() <= (2e-6 if precise else 1.5e-3)


def test_autocast_casts_x_and_weight(device: str) -> None:
    x, weight = inputs(device, torch.float32)
    weight.requires_grad_()
    scale = torch.ones(6, device=device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    with torch.autocast(device, dtype):
        y = depthwise_conv2d(x, weight, scale=scale)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), F.conv2d(x, weight, None, 1, 1, groups=6), atol=0.1, rtol=0.05)


def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Two calls in one graph, the second in training form."""
    y = depthwise_conv2d(x, weight, bias, activation="gelu", residual="pre")
    y, sums = depthwise_conv2d_stats(y, weight, activation="silu")
    scale, shift, _, _ = batch_norm_affine(sums, y.numel() // 6, bias, bias)
    return y * scale[:, None, None].to(y.dtype) + shift[:, None, None].to(y.dtype)


def test_compile_fullgraph_and_export(device: str) -> None:
    x, weight = inputs(device)
    bias = torch.randn(6, generator=torch.Generator().manual_seed(2)).to(device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    plain = torch.autograd.grad(block(*leaves).float().sum(), leaves)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves).float().sum(), leaves), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return block(x, weight, bias)

    args = tuple(t.detach() for t in leaves)
    exported = torch.export.export(Module(), args)
    torch.testing.assert_close(exported.module()(*args), block(*args))
    assert sum("depthwise_conv2d" in str(node.target) for node in exported.graph.nodes) == 2


def test_fake_tensors_know_shapes_and_strides(device: str) -> None:
    x, weight = inputs(device)
    real = depthwise_conv2d_stats(x, weight, stride=2)
    with FakeTensorMode() as mode:
        fake = depthwise_conv2d_stats(mode.from_tensor(x), mode.from_tensor(weight), stride=2)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("residual", ["none", "pre", "post"])
def test_opcheck(residual: str, device: str) -> None:
    x, weight = inputs(device)
    vectors = [torch.randn(6, device=device) for _ in range(3)]
    config = (1, 1, "gelu", residual, residual != "post")
    torch.library.opcheck(torch.ops.vitkernels.depthwise_conv2d, (x, weight, *vectors, *config))
    dsums = torch.randn(2, 6, device=device) if residual != "post" else None
    args = (torch.randn_like(x), dsums, x, weight, *vectors, *config, [True] * 5)
    torch.library.opcheck(torch.ops.vitkernels.depthwise_conv2d_backward, args)


def test_flops_are_those_of_a_convolution(device: str) -> None:
    """Forward as torch counts F.conv2d; backward twice that (torch's own rule overlooks groups there)."""
    x, weight = inputs(device, torch.float32)
    with FlopCounterMode(display=False) as plain:
        F.conv2d(x, weight, None, 1, 1, groups=6)
    leaves = x.requires_grad_(), weight.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv2d(*leaves, activation="gelu")
        forward_flops = counter.get_total_flops()
        y.sum().backward()
    forward, forward_bytes = depthwise_conv2d_work(tuple(x.shape), 3, itemsize=4)
    backward, _ = depthwise_conv2d_work(tuple(x.shape), 3, itemsize=4, backward=True)
    assert forward_flops == plain.get_total_flops() == forward
    assert counter.get_total_flops() == forward + backward
    assert forward_bytes == 2 * x.numel() * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": (5, 1, 3, 3)}, r"weight \[5, 1, 3, 3\] should be \[C, 1, k, k\] with the C of x \[2, 6, 8, 8\]"),
        ({"weight": (6, 1, 3, 5)}, r"weight \[6, 1, 3, 5\].*x \[2, 6, 8, 8\]"),
        ({"weight": (6, 1, 10, 10)}, r"kernel 10 x 10"),
        ({"x": (6, 8, 8)}, r"x \[6, 8, 8\] should be \[B, C, H, W\]"),
        ({"x": (2, 6, 1, 8), "padding": 0}, r"x \[2, 6, 1, 8\] padded by 0 is smaller than kernel 3 x 3"),
        ({"bias": (5,)}, r"bias \[5\] should be \[C\] with the C of x \[2, 6, 8, 8\]"),
        ({"weight_dtype": torch.float16}, r"weight is torch.float16, x is torch.float32"),
        ({"residual": "pre", "stride": 2}, r"residual 'pre' needs stride 1"),
        ({"residual": "middle"}, r"residual 'middle' should be one of none, pre, post"),
        ({"activation": "tanh"}, r"activation 'tanh' should be one of none, relu"),
        ({"padding": 3}, r"padding 3 should be from 0 to k - 1 = 2"),
        ({"stride": 0}, r"stride 0 should be 1 or more"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str, device: str) -> None:
    x = torch.zeros(change.pop("x", (2, 6, 8, 8)), device=device)
    weight = torch.zeros(
        change.pop("weight", (6, 1, 3, 3)), device=device, dtype=change.pop("weight_dtype", torch.float32)
    )
    bias = torch.zeros(change.pop("bias", (6,)), device=device)
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(x, weight, bias, **change)


def test_stats_refuse_a_residual_after_the_norm(device: str) -> None:
    x, weight = inputs(device)
    with pytest.raises(ValueError, match="'post' comes after the norm"):
        depthwise_conv2d_stats(x, weight, residual="post")
    with pytest.raises(ValueError, match=r"sums \[2, 5\] should be \[2, C\] with weight \[6\]"):
        batch_norm_affine(torch.zeros(2, 5), 1, torch.ones(6), torch.ones(6))


PLAIN = """
import torch
from vitkernels.depthwise.conv import depthwise_conv2d, depthwise_conv2d_reference, depthwise_conv2d_stats
torch.manual_seed(0)
for act, res, stride in (("gelu", "pre", 1), ("gelu_tanh", "post", 1), ("silu", "none", 2), ("relu", "none", 2)):
    x, w = torch.randn(2, 3, 6, 5).double().requires_grad_(), torch.randn(3, 1, 3, 3).double().requires_grad_()
    v = [torch.randn(3).double().requires_grad_() for _ in range(3)]
    run = lambda fn: fn(x, w, v[0], stride, 1, activation=act, scale=v[1], shift=v[2], residual=res)
    y, r = run(depthwise_conv2d), run(depthwise_conv2d_reference)
    torch.testing.assert_close(y, r)
    dy = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, [x, w, *v], dy), torch.autograd.grad(r, [x, w, *v], dy)):
        torch.testing.assert_close(a, b)
    f = lambda x, w, b: depthwise_conv2d_stats(x, w, b, stride, activation=act, residual="none")
    assert torch.autograd.gradcheck(f, (x, w, v[0]))
print("plain path agrees")
"""


def test_cpu_without_interpreter_is_the_reference() -> None:
    """A process of its own, since the interpreter is chosen when Triton is imported."""
    here = Path(__file__).resolve().parents[3]
    # Threads that wait for each other's tiny parts would take most of the time.
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{here}:{here / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PLAIN], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain path agrees" in done.stdout


@pytest.mark.parametrize("stats", [False, True])
def test_function_transforms_take_its_gradient(stats: bool, device: str) -> None:
    x, weight = inputs(device, torch.float32)

    def loss(w: Tensor) -> Tensor:
        if stats:
            y, sums = depthwise_conv2d_stats(x, w, activation="silu")
            return y.square().sum() + sums.sin().sum()
        return depthwise_conv2d(x, w, activation="silu").square().sum()

    leaf = weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(weight), want)
