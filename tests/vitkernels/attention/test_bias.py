"""The attention kernels against fp64: in Triton's interpreter, or on a GPU with --device cuda."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vitkernels import (
    bias_attention,
    bias_attention_reference,
    expand_relative_bias,
    gated_attention,
    gated_attention_reference,
    relative_attention,
    relative_attention_reference,
)
from vitkernels.attention import bias, gated, relative
from vitkernels.runtime.call import Call
from vitkernels.runtime.call import run_all as launch_all

MODULES = {"bias_attention": bias, "relative_attention": relative, "gated_attention": gated}
OPERATIONS = tuple(MODULES)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Fills every torch.empty with NaN, so that an output element which no program writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest, device: str) -> torch.dtype:
    if request.param == "bf16" and device == "cpu":
        pytest.skip("Triton's interpreter computes bf16 as raw 16-bit integers")
    return DTYPES[request.param]


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """Every step in the inputs' own dtype: the error that users of plain PyTorch live with."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores + bias.to(q.dtype)).softmax(-1) @ v


def naive_gated(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    g = gate.to(q.dtype).sigmoid()[:, None, None]
    return ((1 - g) * scores.softmax(-1) + g * positional.to(q.dtype).softmax(-1)) @ v


def naive_relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    index = torch.tensor(
        [[(i // w - j // w + h - 1) * (2 * w - 1) + i % w - j % w + w - 1 for j in range(h * w)] for i in range(h * w)],
        device=q.device,
    )
    return naive(q, k, v, table[index].permute(2, 0, 1))


@dataclass
class Problem:
    """One call: the kernel, its reference, the low-precision rival, and inputs of which all need gradients."""

    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    rival: Callable[..., Tensor]
    inputs: list[Tensor]
    grad: Tensor


def tokens(B: int, H: int, n: int, D: int, dtype: torch.dtype, device: str, packed: bool) -> Tensor:
    """[B, H, n, D]; packed ones are every third slice of a projection's output, with a contiguous last dim."""
    if packed:
        return torch.randn(B, n, 3, H, D, device=device).to(dtype).permute(2, 0, 3, 1, 4)[1]
    return torch.randn(B, H, n, D, device=device).to(dtype)


def bias_problem(
    B: int,
    H: int,
    N: int,
    M: int,
    D: int,
    dtype: torch.dtype,
    device: str,
    packed: bool = True,
    scale: float | None = None,
) -> Problem:
    q, grad = tokens(B, H, N, D, dtype, device, packed), tokens(B, H, N, D, dtype, device, packed=False)
    k, v = (tokens(B, H, M, D, dtype, device, packed) for _ in range(2))
    bias = torch.randn(H, N, M, device=device)
    return Problem(
        lambda *x: bias_attention(*x, scale),
        lambda *x: bias_attention_reference(*x, scale),
        lambda *x: naive(*x, scale),
        [q, k, v, bias],
        grad,
    )


def relative_problem(B: int, H: int, grid: tuple[int, int], D: int, dtype: torch.dtype, device: str) -> Problem:
    q, k, v, grad = (tokens(B, H, grid[0] * grid[1], D, dtype, device, packed=True) for _ in range(4))
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1), H, device=device)
    return Problem(
        lambda *x: relative_attention(*x, grid),
        lambda *x: relative_attention_reference(*x, grid),
        lambda *x: naive_relative(*x, grid),
        [q, k, v, table],
        grad,
    )


def gated_problem(B: int, H: int, N: int, D: int, dtype: torch.dtype, device: str) -> Problem:
    q, k, v, grad = (tokens(B, H, N, D, dtype, device, packed=True) for _ in range(4))
    inputs = [q, k, v, torch.randn(H, N, N, device=device), torch.randn(H, device=device)]
    return Problem(gated_attention, gated_attention_reference, naive_gated, inputs, grad)


def run(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check(problem: Problem) -> None:
    """Every result is finite, of the right shape and dtype, and at most twice as wrong as the low-precision rival."""
    got = run(problem.kernel, problem.inputs, problem.grad)
    rival = run(problem.rival, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    eps = torch.finfo(problem.grad.dtype).eps
    slack = 3 * eps if problem.grad.dtype == torch.float32 else eps  # fp32 sums in another order differ by a few eps
    largest = max(truth.abs().max() for truth in exact)  # a gradient can be exactly zero, as with a single key
    for index, (ours, theirs, truth) in enumerate(zip(got, rival, exact, strict=True)):
        assert ours.shape == truth.shape
        assert ours.dtype == ([problem.grad, *problem.inputs])[index].dtype
        assert ours.isfinite().all(), f"result {index} is not finite"
        allowed = 2 * (theirs.double() - truth).abs().max() + slack * (truth.abs().max() + largest)
        wrong = (ours.double() - truth).abs().max()
        assert wrong <= allowed, f"result {index} (0 is the output) is wrong by {wrong:.2e}, allowed {allowed:.2e}"


BIAS_SHAPES = {
    "window-49": (3, 2, 49, 49, 32),
    "coatnet-196": (2, 1, 196, 196, 32),
    "beit-197": (1, 1, 197, 197, 64),
    "coatnet-144": (2, 1, 144, 144, 32),
    "long-keys": (3, 1, 33, 300, 32),
    "cmt-few-keys": (2, 1, 200, 49, 64),
    "cmt-ti-46": (2, 1, 70, 25, 46),
    "cmt-xs-52": (1, 2, 66, 36, 52),
    "cmt-b-76": (2, 1, 65, 64, 76),
    "wide-128": (1, 1, 40, 70, 128),
    "one-query": (2, 1, 1, 17, 16),
    "one-key": (2, 1, 17, 1, 16),
}


@pytest.mark.parametrize("shape", BIAS_SHAPES.values(), ids=BIAS_SHAPES)
def test_bias_attention_matches_fp64(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    check(bias_problem(*shape, dtype, device))


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (5, 9), (1, 20), (17, 13)], ids=str)
def test_relative_attention_matches_fp64(grid: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    check(relative_problem(2, 2 if grid[0] < 8 else 1, grid, 32, dtype, device))


@pytest.mark.parametrize(("B", "H", "N", "D"), [(2, 1, 196, 48), (3, 2, 49, 48), (1, 1, 230, 64), (2, 1, 9, 16)])
def test_gated_attention_matches_fp64(B: int, H: int, N: int, D: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    check(gated_problem(B, H, N, D, dtype, device))


TALL_PROBLEMS = {
    "few-keys": lambda *x: bias_problem(2, 1, 200, 49, 64, *x),
    "few-keys-256": lambda *x: bias_problem(3, 1, 250, 49, 64, *x),
    "few-keys-512": lambda *x: bias_problem(2, 1, 500, 36, 52, *x),
    "keys-held-144": lambda *x: bias_problem(3, 2, 580, 144, 64, *x),
    "keys-held-81": lambda *x: bias_problem(1, 1, 330, 81, 52, *x),
    "last-tile-16": lambda *x: bias_problem(2, 1, 144, 144, 64, *x),
    "short-rows": lambda *x: bias_problem(2, 1, 130, 200, 32, *x),
    "wide-heads": lambda *x: bias_problem(1, 1, 150, 70, 128, *x),
    "relative-196": lambda *x: relative_problem(2, 1, (14, 14), 32, *x),
    "relative-144": lambda *x: relative_problem(2, 1, (12, 12), 32, *x),
    "relative-100": lambda *x: relative_problem(2, 2, (20, 5), 24, *x),
    "relative-last-64": lambda *x: relative_problem(3, 1, (20, 16), 32, *x),
    "relative-70": lambda *x: relative_problem(5, 2, (10, 7), 32, *x),  # dBias: narrow tiles of 8
    "relative-80": lambda *x: relative_problem(2, 1, (8, 10), 16, *x),  # narrow tiles of 16
    "relative-192": lambda *x: relative_problem(2, 1, (12, 16), 32, *x),
    "relative-210": lambda *x: relative_problem(1, 1, (14, 15), 32, *x),
    "relative-256": lambda *x: relative_problem(1, 1, (16, 16), 32, *x),
    "gated-196": lambda *x: gated_problem(3, 1, 196, 48, *x),
    "gated-last-16": lambda *x: gated_problem(2, 1, 144, 64, *x),
}


@pytest.mark.parametrize("name", TALL_PROBLEMS)
def test_tall_tiles_match_fp64(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 128 and 256 queries, or of all, which large batches get, at a batch that the interpreter can bear."""
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    check(TALL_PROBLEMS[name](torch.float16, device))


def launches(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """A list that fills with the launches that the operations make from now on."""
    made: list[Call] = []

    def run_all(calls: list[Call]) -> None:
        made.extend(calls)
        launch_all(calls)

    for op in OPERATIONS:
        monkeypatch.setattr(MODULES[op], "run_all", run_all)
    return made


def test_a_short_last_tile_of_queries(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CoAtNet's own path at 224 px: four images or more share a bias tile, and the last tile has 16 queries."""
    made = launches(monkeypatch)
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    for B, H, grid, D in ((4, 1, (14, 14), 32), (5, 2, (10, 7), 20)):
        check(relative_problem(B, H, grid, D, torch.float16, device))
    check(bias_problem(7, 1, 70, 49, 32, torch.float16, device))
    assert all(call.args["TAIL"] for call in made if call.pass_name == "fwd")


def test_few_keys_get_tall_tiles_or_stand_still(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMT's own paths in its first stages; not where a sixth of the tile would be padding, nor with as many keys."""
    made = launches(monkeypatch)
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("tiles are as tall on compute capability 9.0 only")
    for N, M in ((250, 49), (220, 49), (250, 100), (400, 100)):
        check(bias_problem(1, 1, N, M, 64, torch.float16, device))
    made = [call for call in made if call.pass_name == "fwd"]
    assert [call.args["BLOCK_N"] for call in made] == [256, 128, 128, 128]
    assert [call.kernel.__name__ for call in made] == [*["_fwd_short_kernel"] * 3, "_fwd_few_keys_kernel"]


@pytest.mark.parametrize(("B", "D", "short"), [(4, 32, 1), (5, 32, 2), (3, 64, 1)])
def test_a_short_last_group_of_images(B: int, D: int, short: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(B, 1, 20, 220, D, torch.float16, device))
    if device == "cpu":  # as on sm_90
        assert next(call for call in made if call.pass_name == "fwd").args["SHORT"] == short


@pytest.mark.parametrize(("N", "M", "D", "half"), [(530, 49, 46, True), (530, 70, 16, True), (300, 20, 16, False)])
def test_spans_of_queries(N: int, M: int, D: int, half: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(1, 1, N, M, D, torch.float16 if half else torch.float32, device))
    assert {"bwd_sum_dk", "bwd_sum_dv"} <= {call.pass_name for call in made}


OTHER_GPU_PROBLEMS = {
    "window-49": lambda *x: bias_problem(3, 2, 49, 49, 32, *x),
    "few-keys": lambda *x: bias_problem(2, 1, 70, 25, 64, *x),
    "long-keys": lambda *x: bias_problem(3, 1, 66, 220, 20, *x),
    "wide-heads": lambda *x: bias_problem(2, 1, 66, 70, 76, *x),
    "relative-70": lambda *x: relative_problem(5, 1, (10, 7), 32, *x),
    "relative-144": lambda *x: relative_problem(2, 1, (12, 12), 48, *x),
    "gated-70": lambda *x: gated_problem(3, 1, 70, 48, *x),
    "gated-144": lambda *x: gated_problem(2, 1, 144, 64, *x),
}


@pytest.mark.parametrize("arch", [80, 100, 120])
@pytest.mark.parametrize("programs", [1, 384])
@pytest.mark.parametrize("name", OTHER_GPU_PROBLEMS)
def test_blocks_by_arch(name: str, programs: int, arch: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu":
        pytest.skip("a GPU runs its own block sizes in every other test")
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", programs)
    for op in OPERATIONS:
        monkeypatch.setattr(MODULES[op], "arch_of", lambda _: arch)
    torch.manual_seed(0)
    check(OTHER_GPU_PROBLEMS[name](torch.float16, device))


def test_large_scores_leave_gradients_digits_where_lse_is_folded_into_products(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    problem = relative_problem(2, 1, (9, 8), 32, torch.float16, device)
    problem.inputs[0] *= 60
    problem.inputs[1] += 3  # every score, and so lse, is in the hundreds
    check(problem)


def test_a_negative_scale_turns_scores_over(device: str) -> None:
    torch.manual_seed(0)
    problem = gated_problem(2, 1, 30, 32, torch.float32, device)
    problem.kernel, problem.reference, problem.rival = (
        functools.partial(f, scale=-0.3) for f in (problem.kernel, problem.reference, problem.rival)
    )
    check(problem)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 5), H=st.integers(1, 2), N=st.integers(1, 90), M=st.integers(1, 150), D=st.integers(16, 80),
    packed=st.booleans(), half=st.booleans(), scale=st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_bias_attention_on_random_shapes(
    device: str, B: int, H: int, N: int, M: int, D: int, packed: bool, half: bool, scale: float | None
) -> None:
    torch.manual_seed(0)
    check(bias_problem(B, H, N, M, D, torch.float16 if half else torch.float32, device, packed, scale))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(h=st.integers(1, 9), w=st.integers(1, 9), B=st.integers(1, 3), D=st.integers(16, 40))
def test_relative_and_gated_attention_on_random_shapes(device: str, h: int, w: int, B: int, D: int) -> None:
    torch.manual_seed(0)
    check(relative_problem(B, 2, (h, w), D, torch.float32, device))
    check(gated_problem(B, 2, h * w, D, torch.float32, device))


def test_masked_keys_get_no_weight_and_no_gradient(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(2, 1, 40, 90, 32, torch.float32, device)
    problem.inputs[3][:, :, 60:] = float("-inf")
    got = run(problem.kernel, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    for ours, truth in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=1e-5, rtol=1e-4)
    assert not got[2][:, :, 60:].any()
    assert not got[4][:, :, 60:].any()


@pytest.mark.parametrize(("n", "masked", "d"), [(196, 128, 32), (90, 64, 32), (100, 64, 64), (300, 128, 32)])
def test_a_first_block_of_masked_keys_leaves_the_others(n: int, masked: int, d: int, device: str) -> None:
    """Half of the queries see only the last keys, the others only the first, as with two regions of a window."""
    torch.manual_seed(0)
    problem = bias_problem(1, 1, n, n, d, torch.float16, device)
    with torch.no_grad():
        problem.inputs[3][:, : n // 2, :masked] = float("-inf")
        problem.inputs[3][:, n // 2 :, masked:] = float("-inf")
    check(problem)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_than_the_current_gpu() -> None:
    torch.manual_seed(0)
    check(bias_problem(2, 1, 49, 49, 32, torch.float16, "cuda:1"))


def test_large_scores_do_not_overflow(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(1, 1, 20, 300, 32, torch.float32, device)
    problem.inputs[0] *= 200
    check(problem)


def test_gate_at_its_ends_is_one_softmax(device: str) -> None:
    torch.manual_seed(0)
    problem = gated_problem(2, 2, 30, 48, torch.float32, device)
    q, k, v, positional, _ = problem.inputs
    for logit, want in (
        (-200.0, bias_attention_reference(q, k, v, torch.zeros_like(positional))),
        (200.0, positional.softmax(-1) @ v),
    ):
        problem.inputs[4] = torch.full((2,), logit, device=device)
        got = run(gated_attention, problem.inputs, problem.grad)
        torch.testing.assert_close(got[0], want, atol=2e-5, rtol=2e-5)
        assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize("logit", [4.0, 6.0, 8.0, 10.0, -6.0, -10.0, -20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_gradients_keep_their_digits_as_the_gate_saturates(logit: float, dtype: torch.dtype, device: str) -> None:
    """Each against its own size, however small, and none worse than in plain PyTorch of the same precision."""
    torch.manual_seed(0)
    problem = gated_problem(2, 1, 40, 48, dtype, device)
    problem.inputs[4] = torch.full((1,), logit, device=device)
    got = run(problem.kernel, problem.inputs, problem.grad)
    rival = run(problem.rival, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    eps = torch.finfo(dtype).eps  # the gate's gradient is a difference of sums that are tens of times its size
    for index, (ours, theirs, truth) in enumerate(zip(got, rival, exact, strict=True)):
        wrong, naive = ((x.double() - truth).norm() / truth.norm() for x in (ours, theirs))
        allowed = min((4 if dtype == torch.float16 else 32) * eps, naive + 4 * eps)
        assert wrong <= allowed, f"result {index} is wrong by {wrong:.1e}, plain PyTorch by {naive:.1e}"


def test_normalising_the_mixed_rows_changes_nothing(device: str) -> None:
    """ConViT divides P by its row sums; the kernel does not, since they are 1."""
    torch.manual_seed(0)
    problem = gated_problem(1, 2, 25, 48, torch.float32, device)
    q, k, v, positional, gate = (x.double() for x in problem.inputs)
    g = gate.sigmoid()[:, None, None]
    p = (1 - g) * (q @ k.transpose(-2, -1) * 48**-0.5).softmax(-1) + g * positional.softmax(-1)
    want = p / p.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(gated_attention(*problem.inputs).double(), want, atol=1e-5, rtol=1e-5)


def test_fp16_scores_far_below_zero_leave_finite_gradients(device: str) -> None:
    """Padding keys score 0; where all real scores are far below, their weight would overflow fp16 if it were kept."""
    torch.manual_seed(0)
    problem = gated_problem(1, 1, 20, 32, torch.float16, device)
    problem.inputs[0] = problem.inputs[0].abs() * 4
    problem.inputs[1] = -problem.inputs[1].abs() * 4
    got = run(problem.kernel, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    assert all(x.isfinite().all() for x in got)
    torch.testing.assert_close(got[1].double(), exact[1], atol=0.02, rtol=0.05)


def test_expanded_bias_is_the_table_in_log2_with_hugely_negative_padding(device: str) -> None:
    table = torch.randn(5 * 3, 2, device=device)
    expanded = expand_relative_bias(table, (3, 2), torch.float32)
    assert expanded.shape == (2, 6, 16)
    assert (expanded[..., 6:] < -1e29).all()
    # Query (2, 0) is token 4, key (0, 1) is token 1: offset (2, -1), row (2 + 2) * 3 + (-1 + 1).
    torch.testing.assert_close(expanded[:, 4, 1], table[12] * 1.4426950408889634)


def test_expanded_bias_gives_the_same_output_without_the_table(device: str) -> None:
    torch.manual_seed(0)
    q, k, v, table = relative_problem(2, 2, (4, 5), 32, torch.float32, device).inputs
    expanded = expand_relative_bias(table, (4, 5), q.dtype)
    assert torch.equal(
        relative_attention(q, k, v, table, (4, 5)), relative_attention(q, k, v, table, (4, 5), expanded=expanded)
    )


def test_inputs_whose_last_dim_is_not_contiguous(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(2, 1, 20, 30, 32, torch.float32, device)
    problem.inputs = [x.transpose(-2, -1).contiguous().transpose(-2, -1) for x in problem.inputs]
    problem.grad = problem.grad.transpose(-2, -1).contiguous().transpose(-2, -1)
    check(problem)


def test_expanded_gradient_and_shared_bias(device: str) -> None:
    """A gradient of stride 0 (from a sum) and one bias used by two calls in one graph."""
    torch.manual_seed(0)
    q, k, v, bias = (x.requires_grad_() for x in bias_problem(2, 2, 20, 30, 32, torch.float32, device, False).inputs)
    (bias_attention(q, k, v, bias) + bias_attention(q, v, k, bias)).sum().backward()
    got, bias.grad = bias.grad, None
    (bias_attention_reference(q, k, v, bias) + bias_attention_reference(q, v, k, bias)).sum().backward()
    torch.testing.assert_close(got, bias.grad, atol=1e-5, rtol=1e-4)


def test_frozen_bias_and_table_get_no_gradient(device: str) -> None:
    torch.manual_seed(0)
    for problem in (
        bias_problem(1, 1, 20, 20, 32, torch.float32, device), relative_problem(1, 1, (4, 5), 32, torch.float32, device)
    ):  # fmt: skip
        leaves = [x.detach().requires_grad_(index < 3) for index, x in enumerate(problem.inputs)]
        problem.kernel(*leaves).backward(problem.grad)
        want = run(problem.reference, problem.inputs, problem.grad)
        assert leaves[3].grad is None
        torch.testing.assert_close(leaves[0].grad, want[1], atol=1e-5, rtol=1e-4)


PROBLEMS = {
    "bias": lambda device: bias_problem(5, 2, 100, 130, 32, torch.float16, device),
    "relative": lambda device: relative_problem(5, 2, (10, 10), 32, torch.float16, device),
    "gated": lambda device: gated_problem(5, 2, 100, 48, torch.float16, device),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_two_runs_agree_bit_for_bit(name: str, device: str) -> None:
    torch.manual_seed(0)
    problem = PROBLEMS[name](device)
    first, second = (run(problem.kernel, problem.inputs, problem.grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_cuda_graph_replays_forward_and_backward(name: str, device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    problem = PROBLEMS[name](device)
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


def test_strides_beyond_32_bits(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs a tensor of 8.6 GB")
    B, N, D = 2, 16384, 16
    base = torch.zeros(B, N, 2**17, device=device, dtype=torch.float16)
    q = base[:, None, :, :D]
    q.copy_(torch.randn(B, 1, N, D, device=device))
    bias = torch.zeros(1, N, 64, device=device)
    k = torch.randn(B, 1, 64, D, device=device).half()
    torch.testing.assert_close(bias_attention(q, k, k, bias), bias_attention(q.contiguous(), k, k, bias))
