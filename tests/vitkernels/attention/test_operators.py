"""The attention operations in PyTorch: opcheck, compile, export, fake tensors, autocast, counters, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from vitkernels import (
    bias_attention,
    bias_attention_reference,
    bias_attention_work,
    expand_relative_bias,
    gated_attention,
    gated_attention_work,
    relative_attention,
    relative_attention_work,
)
from vitkernels.attention.relative import relative_index

from .accuracy import run
from .problems import Problem, bias_problem, gated_problem, relative_problem

B, H, GRID, D = 2, 2, (3, 5), 16
N = GRID[0] * GRID[1]


def relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return relative_attention(q, k, v, table, GRID)


def inputs(name: str, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    qkv = torch.randn(B, N, 3, H, D, device=device).to(dtype).permute(2, 0, 3, 1, 4).unbind()
    extra = {"bias": [(H, N, N)], "relative": [(5 * 9, H)], "gated": [(H, N, N), (H,)]}[name]
    return [*qkv, *(torch.randn(shape, device=device) for shape in extra)]


OPS: dict[str, Callable[..., Tensor]] = {"bias": bias_attention, "relative": relative, "gated": gated_attention}
WORK = {
    "bias": lambda **kw: bias_attention_work(B, H, N, N, D, **kw),
    "relative": lambda **kw: relative_attention_work(B, H, GRID, D, **kw),
    "gated": lambda **kw: gated_attention_work(B, H, N, D, **kw),
}


@pytest.fixture(params=list(OPS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def op_arguments(name: str, device: str) -> dict[str, tuple]:
    """Arguments of every custom operator of one operation."""
    q, k, v, *extra = inputs(name, device)
    ops = torch.ops.vitkernels
    lse, grad = torch.randn(B, H, N, device=device), torch.randn(B, H, N, D, device=device)
    if name == "bias":
        fwd = (q, k, v, *extra, 0.25, True)
        out, lse = ops.bias_attention_fwd(*fwd)
        return {"bias_attention_fwd": fwd, "bias_attention_bwd": (grad, q, k, v, *extra, out, lse, 0.25, True)}
    if name == "relative":
        expanded = ops.expand_relative_bias(*extra, *GRID, torch.float32)
        fwd = (q, k, v, expanded, 0.25, True)
        out, lse = ops.relative_attention_fwd(*fwd)
        return {
            "expand_relative_bias": (*extra, *GRID, torch.float32),
            "relative_attention_fwd": fwd,
            "relative_attention_bwd": (grad, q, k, v, *extra, expanded, out, lse, 0.25, *GRID, True),
        }
    fwd = (q, k, v, *extra, 0.25, True)
    out, lse, weights = ops.gated_attention_fwd(*fwd)
    return {"gated_attention_fwd": fwd, "gated_attention_bwd": (grad, q, k, v, *extra, out, lse, weights, 0.25)}


def test_opcheck(name: str, device: str) -> None:
    for op, arguments in op_arguments(name, device).items():
        torch.library.opcheck(getattr(torch.ops.vitkernels, op).default, arguments)


def test_compile_fullgraph_gives_the_same_result_and_gradients(name: str, device: str) -> None:
    tensors = inputs(name, device)
    compiled = torch.compile(OPS[name], fullgraph=True, backend="aot_eager")
    results = []
    for function in (OPS[name], compiled):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)
    torch.testing.assert_close(compiled(*tensors), OPS[name](*tensors))


def test_export(name: str, device: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return OPS[name](*tensors)

    tensors = tuple(inputs(name, device))
    program = torch.export.export(Model(), tensors)
    assert any("vitkernels" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*tensors), OPS[name](*tensors))


def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(name: str, device: str) -> None:
    def run(tensors: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = OPS[name](*leaves)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    tensors = inputs(name, device)
    with FakeTensorMode() as mode:
        fake = run([mode.from_tensor(x) for x in tensors])
    for imagined, real in zip(fake, run(tensors), strict=True):
        assert (imagined.shape, imagined.stride(), imagined.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.rehearsal
def test_output_is_token_major(name: str, device: str) -> None:
    out = OPS[name](*inputs(name, device))
    assert out.transpose(1, 2).is_contiguous()


def test_autocast_casts_q_k_v_and_leaves_gradients_in_fp32(name: str, device: str) -> None:
    tensors = [x.requires_grad_() for x in inputs(name, device)]
    want = OPS[name](*tensors)
    with torch.autocast(device, dtype=torch.float16):
        out = OPS[name](*tensors)
        assert out.dtype == torch.float16
        out.float().sum().backward()
    torch.testing.assert_close(out.float(), want, atol=5e-3, rtol=5e-3)
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in tensors)


@pytest.mark.rehearsal
def test_flops_are_counted_forward_and_backward(name: str, device: str) -> None:
    tensors = [x.requires_grad_() for x in inputs(name, device)]
    with FlopCounterMode(display=False) as counter:
        out = OPS[name](*tensors)
    assert counter.get_total_flops() == WORK[name]()[0] == 4 * B * H * N * N * D
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == WORK[name](backward=True)[0] == 10 * B * H * N * N * D


def test_wrong_shapes_dtypes_and_devices_name_both(name: str, device: str) -> None:
    q, k, v, *extra = inputs(name, device)
    op = OPS[name]
    with pytest.raises(ValueError, match=r"\(2, 2, 15, 16\).*\(2, 2, 14, 16\)"):
        op(q, k[:, :, :14], v, *extra)
    with pytest.raises(ValueError, match=r"float32.*float16"):
        op(q, k.half(), v, *extra)
    with pytest.raises(ValueError, match=rf"meta.*{device}"):
        op(q, k, v, *(x.to("meta") for x in extra))
    with pytest.raises(ValueError, match=r"\(2, 2, 15, 16\).*got"):
        op(q, k, v, extra[0][..., :1], *extra[1:])
    with pytest.raises(ValueError, match="16 to 128"):
        op(q[..., :8], k[..., :8], v[..., :8], *extra)


def test_a_grid_that_does_not_hold_the_tokens(device: str) -> None:
    q, k, v, table = inputs("relative", device)
    with pytest.raises(ValueError, match="4x4 needs q, k, v of 16 tokens"):
        relative_attention(q, k, v, table, (4, 4))


@pytest.mark.parametrize("grid", [(3, 5, 1), (-3, -5), 15], ids=str)
def test_a_grid_that_is_no_grid(grid: object, device: str) -> None:
    with pytest.raises(ValueError, match=r"grid must be \(h, w\) with h \* w = 15 tokens"):
        relative_attention(*inputs("relative", device), grid)


def test_an_expanded_bias_of_another_dtype_device_or_layout(device: str) -> None:
    q, k, v, table = inputs("relative", device)
    expanded = expand_relative_bias(table, GRID, q.dtype)
    with pytest.raises(ValueError, match=r"float32 on .*got torch.float16"):
        relative_attention(q, k, v, table, GRID, expanded=expanded.half())
    with pytest.raises(ValueError, match=rf"{device}.*got .* on meta"):
        relative_attention(q, k, v, table, GRID, expanded=expanded.to("meta"))
    slice_of_wider = torch.nn.functional.pad(expanded, (0, 16), value=99.0)[..., :16]
    want = relative_attention(q, k, v, table, GRID)
    for other in (slice_of_wider, expanded.mT.contiguous().mT):
        assert torch.equal(relative_attention(q, k, v, table, GRID, expanded=other), want)


@pytest.mark.parametrize(("low", "percent"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)], ids=str)
def test_rounding_the_expanded_bias_moves_the_output_as_documented(low: torch.dtype, percent: float) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 4, 196, 32).to(low).double() for _ in range(3))
    bias = torch.randn(27 * 27, 4).double()[relative_index((14, 14))].permute(2, 0, 1)
    log2_e = math.log2(math.e)
    exact = bias_attention_reference(q, k, v, bias)
    moved = (bias_attention_reference(q, k, v, (bias * log2_e).to(low).double() / log2_e) - exact).norm() / exact.norm()
    rounding = (exact.to(low).double() - exact).norm() / exact.norm()
    assert moved.item() * 100 == pytest.approx(percent, rel=0.15)
    assert rounding < moved < 2.2 * rounding


def test_bf16_in_the_interpreter_is_refused(name: str, device: str) -> None:
    if device != "cpu":
        pytest.skip("the interpreter runs on the CPU")
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        OPS[name](*inputs(name, device, torch.bfloat16))


def test_an_expanded_bias_where_gradients_are_needed(device: str) -> None:
    q, k, v, table = inputs("relative", device)
    with pytest.raises(ValueError, match="for inference"):
        relative_attention(q.requires_grad_(), k, v, table, GRID, expanded=torch.zeros(H, N, 16, device=device))


def repeated(name: str, device: str) -> Problem:
    """Several images, heads and tiles; few in the interpreter, which runs programs in one order and proves no more."""
    torch.manual_seed(0)
    B, H, grid = (5, 2, (10, 10)) if device == "cuda" else (2, 2, (6, 5))
    if name == "bias":
        return bias_problem(B, H, grid[0] * grid[1], 130, 32, torch.float16, device)
    if name == "relative":
        return relative_problem(B, H, grid, 32, torch.float16, device)
    return gated_problem(B, H, grid[0] * grid[1], 48, torch.float16, device)


def test_two_runs_agree_bit_for_bit(name: str, device: str) -> None:
    problem = repeated(name, device)
    first, second = (run(problem.kernel, problem.inputs, problem.grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cuda_graph_replays_forward_and_backward(name: str, device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    problem = repeated(name, device)
    want = run(problem.kernel, problem.inputs, problem.grad)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(problem.kernel, problem.inputs, problem.grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(problem.kernel, problem.inputs, problem.grad)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
