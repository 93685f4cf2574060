"""CMT's attention sub-block: whole-block kernels and the composed form against fp64, and inside PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from vitkernels.reduced.attention import (
    REDUCED_ATTENTION_CASES,
    ReducedAttentionCase,
    ReducedAttentionWeights,
    reduced_attention,
    reduced_attention_reference,
    reduced_attention_work,
)
from vitkernels.reduced.operators import block_fits, expand_block_bias

HALF, FULL = torch.float16, torch.float32
Problem = tuple[Tensor, Tensor, ReducedAttentionWeights]


def make(
    channels: int,
    heads: int,
    grid: tuple[int, int],
    r: int,
    dtype: torch.dtype,
    device: str,
    *,
    batch: int = 2,
    linear_bias: bool = True,
) -> Problem:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, spread: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=g).mul(spread).to(device)

    def linear() -> tuple[Tensor, Tensor | None]:
        weight = normal(channels, channels, spread=channels**-0.5).to(dtype)
        return weight, normal(channels) if linear_bias else None

    def norm() -> tuple[Tensor, Tensor]:
        return normal(channels) + 1, normal(channels)

    weights = ReducedAttentionWeights(*norm(), *linear(), *linear(), *linear(), *linear())
    if r > 1:
        running = normal(channels), normal(channels).abs() + 0.5
        taps = normal(channels, 1, r, r, spread=1 / r).to(dtype)
        weights = weights._replace(
            reduce_weight=taps,
            reduce_bias=normal(channels),
            **dict(zip(("bn_weight", "bn_bias", "bn_mean", "bn_var"), (*norm(), *running), strict=True)),
        )
    tokens, keys = grid[0] * grid[1], (grid[0] // r) * (grid[1] // r)
    x = normal(batch, tokens, channels, spread=1.0).to(dtype)
    return x, normal(heads, tokens, keys, spread=1.0), weights


def cast(problem: Problem, dtype: torch.dtype) -> Problem:
    x, bias, w = problem
    return x.to(dtype), bias.to(dtype), ReducedAttentionWeights(*(None if t is None else t.to(dtype) for t in w))


def limit(low: Tensor, exact: Tensor, dtype: torch.dtype, roundings: int) -> float:
    """Twice the reference's own error (it rounds once), plus the roundings of the tensors between operators."""
    return 2 * (low.double() - exact).abs().max().item() + roundings * torch.finfo(dtype).eps * exact.abs().max().item()


SHAPES = [
    pytest.param(32, 2, (6, 4), 2, HALF, id="block-two-heads", marks=[pytest.mark.smoke, pytest.mark.fast]),
    pytest.param(64, 1, (16, 8), 8, HALF, id="block-cmt_s-a"),
    pytest.param(16, 1, (3, 5), 1, HALF, id="block-no-reduction"),
    pytest.param(48, 1, (8, 8), 4, HALF, id="block-width-48"),
    pytest.param(46, 1, (8, 8), 4, HALF, id="composed-cmt_ti-width"),
    pytest.param(144, 2, (4, 6), 2, HALF, id="composed-wide"),
    pytest.param(32, 2, (9, 9), 1, HALF, id="composed-81-keys"),
    pytest.param(32, 2, (6, 4), 2, FULL, id="composed-full"),
]


@pytest.mark.parametrize(("channels", "heads", "grid", "r", "dtype"), SHAPES)
@pytest.mark.parametrize("linear_bias", [True, False])
def test_inference_against_fp64(
    channels: int,
    heads: int,
    grid: tuple[int, int],
    r: int,
    dtype: torch.dtype,
    linear_bias: bool,
    device: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make(channels, heads, grid, r, dtype, device, linear_bias=linear_bias)
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: t.fill_(float("nan")) if (t := empty(*a, **k)).is_floating_point() else t
    )
    got = reduced_attention(*problem, grid, heads)
    monkeypatch.undo()
    exact = reduced_attention_reference(*cast(problem, torch.float64), grid, heads)
    low = reduced_attention_reference(*problem, grid, heads)
    assert block_fits(channels, heads, problem[1].shape[2], dtype, 90) == ("block" in request.node.callspec.id)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max().item() <= limit(low, exact, dtype, 2)


def test_wide_blocks_are_for_gpus_with_shared_memory_for_them() -> None:
    fits = {arch: block_fits(128, 2, 49, torch.float16, arch) for arch in (80, 86, 89, 90, 100, 103, 120)}
    assert [arch for arch, fit in fits.items() if fit] == [80, 90, 100, 103]
    assert block_fits(64, 1, 49, torch.float16, 86)


@pytest.mark.parametrize("dtype", [HALF, FULL], ids=str)
def test_what_reduces_nothing_is_refused(dtype: torch.dtype, device: str) -> None:
    """In half precision the whole-block kernels would leave such parts out."""
    x, bias, w = make(32, 2, (4, 6), 1, dtype, device)
    vector = torch.ones(32, device=device)
    norm = {"bn_weight": vector, "bn_bias": vector, "bn_mean": vector, "bn_var": vector}
    point = w._replace(reduce_weight=torch.ones(32, 1, 1, 1, device=device, dtype=dtype), **norm)
    with pytest.raises(ValueError, match=r"reduce_weight \[32, 1, 1, 1\] should be .* r from 2"):
        reduced_attention(x, bias, point, (4, 6), 2)
    with pytest.raises(ValueError, match="reduce_bias needs a reduce_weight"):
        reduced_attention(x, bias, w._replace(reduce_bias=vector), (4, 6), 2)


def test_no_heads_and_a_grid_of_three(device: str) -> None:
    x, bias, w = make(32, 2, (4, 6), 1, FULL, device)
    with pytest.raises(ValueError, match="heads 0 should be 1 or more"):
        reduced_attention(x, bias, w, (4, 6), 0)
    with pytest.raises(ValueError, match=r"grid \(4, 6, 1\) should be \(h, w\)"):
        reduced_attention(x, bias, w, (4, 6, 1), 2)


@pytest.mark.parametrize("expanded", [False, True])
def test_flops_of_the_block_without_reduction(expanded: bool, device: str) -> None:
    """Fifteen keys, which an expanded bias pads to sixteen."""
    x, bias, w = make(32, 2, (3, 5), 1, HALF, device)
    table = expand_block_bias(bias, HALF) if expanded else bias
    with FlopCounterMode(display=False) as counter:
        block = torch.ops.vitkernels.reduced_attention_block
        block(x, table, *w[:10], None, None, None, 5, 2, 1e-6, 0.25, expanded)
    assert counter.get_total_flops() == reduced_attention_work(2, 15, 15, 32)[0]


def test_training_needs_two_values_per_channel_and_an_empty_batch_leaves_the_statistics(device: str) -> None:
    x, bias, w = make(32, 2, (2, 2), 2, FULL, device, batch=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reduced_attention(x, bias, w, (2, 2), 2, training=True)
    before = w.bn_mean.clone(), w.bn_var.clone()
    assert reduced_attention(x[:0], bias, w, (2, 2), 2, training=True).shape == (0, 4, 32)
    assert torch.equal(w.bn_mean, before[0])
    assert torch.equal(w.bn_var, before[1])


def gradients(
    fn: Callable[..., Tensor], problem: Problem, grid: tuple[int, int], heads: int, training: bool
) -> tuple[Tensor, dict[str, Tensor], ReducedAttentionWeights]:
    x, bias, w = problem
    running = ("bn_mean", "bn_var")
    leaves = {"x": x, "bias": bias, **{n: t for n, t in w._asdict().items() if t is not None and n not in running}}
    leaves = {n: t.detach().clone().requires_grad_() for n, t in leaves.items()}
    statistics = {n: t.clone() for n in running if (t := getattr(w, n)) is not None}
    w = w._replace(**{n: t for n, t in leaves.items() if n not in ("x", "bias")}, **statistics)
    y = fn(leaves["x"], leaves["bias"], w, grid, heads, training=training)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return y.detach(), dict(zip(leaves, grads, strict=True)), w


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("channels", "heads", "grid", "r", "dtype"),
    [
        pytest.param(32, 2, (6, 4), 2, FULL, id="full"),
        pytest.param(32, 1, (8, 8), 4, HALF, id="half"),
        pytest.param(24, 1, (3, 5), 1, FULL, id="no-reduction"),
    ],
)
def test_gradients_and_running_statistics_against_fp64(
    channels: int, heads: int, grid: tuple[int, int], r: int, dtype: torch.dtype, training: bool, device: str
) -> None:
    problem = make(channels, heads, grid, r, dtype, device)
    y, grads, w = gradients(reduced_attention, problem, grid, heads, training)
    args = (grid, heads, training)
    exact_y, exact, exact_w = gradients(reduced_attention_reference, cast(problem, torch.float64), *args)
    low_y, low, _ = gradients(reduced_attention_reference, problem, *args)
    assert (y.double() - exact_y).abs().max().item() <= limit(low_y, exact_y, dtype, 4)
    for name, grad in grads.items():
        error = (grad.double() - exact[name]).abs().max().item()
        # Softmax does not see k's bias, nor a batch norm in training the reduction's: their gradients are zero in exact
        # arithmetic, and what is left is rounding of the size of their neighbours' gradients.
        neighbour = {"k_bias": "k_weight", "reduce_bias": "reduce_weight"}.get(name, name)
        size = exact[neighbour].abs().max().item()
        allowed = 2 * (low[name].double() - exact[name]).abs().max().item() + 8 * torch.finfo(dtype).eps * size
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
    if r > 1:
        before = problem[2]
        assert torch.equal(w.bn_mean, before.bn_mean) != training
        for mine, theirs in ((w.bn_mean, exact_w.bn_mean), (w.bn_var, exact_w.bn_var)):
            torch.testing.assert_close(mine.double(), theirs, atol=2e-3, rtol=2e-3)


def test_strided_tokens(device: str) -> None:
    """Tokens cut out of a wider tensor are read in place."""
    x, bias, w = make(32, 2, (6, 4), 2, HALF, device)
    wide = torch.cat([x, x], dim=2)[:, :, :32]
    assert torch.equal(reduced_attention(wide, bias, w, (6, 4), 2), reduced_attention(x, bias, w, (6, 4), 2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_repeats_bit_for_bit(training: bool, device: str) -> None:
    problem = make(32, 2, (6, 4), 2, HALF, device)
    first, second = (gradients(reduced_attention, problem, (6, 4), 2, training) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_autocast_casts_tokens_and_products(device: str) -> None:
    problem = make(32, 2, (6, 4), 2, FULL, device)
    with torch.autocast(device, HALF):
        y = reduced_attention(*problem, (6, 4), 2)
    assert y.dtype == HALF
    exact = reduced_attention_reference(*cast(problem, torch.float64), (6, 4), 2)
    assert (y.double() - exact).abs().max().item() < 2e-2


def test_compile_export_and_fake(device: str) -> None:
    x, bias, w = make(32, 2, (6, 4), 2, HALF, device)

    class Twice(torch.nn.Module):
        def forward(self, x: Tensor, bias: Tensor, *flat: Tensor) -> Tensor:
            weights = ReducedAttentionWeights(*flat)
            y = reduced_attention(x, bias, weights, (6, 4), 2)
            return reduced_attention(y, bias, weights, (6, 4), 2)

    args = (x, bias, *w)
    plain = Twice()(*args)
    torch.testing.assert_close(torch.compile(Twice(), fullgraph=True, backend="aot_eager")(*args), plain)
    exported = torch.export.export(Twice(), args)
    torch.testing.assert_close(exported.module()(*args), plain)
    assert sum("reduced_attention_block" in str(node.target) for node in exported.graph.nodes) == 2
    with FakeTensorMode() as mode:
        fake = Twice()(*(mode.from_tensor(t) for t in args))
    assert (fake.shape, fake.stride(), fake.dtype) == (plain.shape, plain.stride(), plain.dtype)


def test_training_compiles_as_one_graph(device: str) -> None:
    problem = make(32, 2, (6, 4), 2, FULL, device)
    plain = gradients(reduced_attention, problem, (6, 4), 2, True)
    compiled = torch.compile(reduced_attention, fullgraph=True, backend="aot_eager")
    graph = gradients(compiled, problem, (6, 4), 2, True)
    torch.testing.assert_close(graph[0], plain[0])
    torch.testing.assert_close(graph[1], plain[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(graph[2].bn_mean, plain[2].bn_mean)


def test_opcheck(device: str) -> None:
    x, bias, w = make(32, 2, (6, 4), 2, HALF, device)
    scale, shift = torch.rand(32, device=device) + 0.5, torch.randn(32, device=device)
    args = (x, bias, *w[:10], w.reduce_weight, scale, shift, 4, 2, 1e-6, 0.25)
    torch.library.opcheck(torch.ops.vitkernels.reduced_attention_block, args)
    torch.library.opcheck(
        torch.ops.vitkernels.reduced_attention_block, (args[0], expand_block_bias(bias, HALF), *args[2:], True)
    )


@pytest.mark.parametrize(("grid", "r"), [((6, 4), 2), ((8, 16), 4), ((3, 5), 1)], ids=str)
def test_expanded_bias_gives_the_same_block(grid: tuple[int, int], r: int, device: str) -> None:
    x, bias, w = make(32, 2, grid, r, HALF, device)
    factor = (torch.rand(32, device=device) + 0.5, torch.randn(32, device=device)) if r > 1 else (None, None)
    rest = (*w[:10], w.reduce_weight, *factor, grid[1], 2, 1e-6, 0.25)
    block = torch.ops.vitkernels.reduced_attention_block
    want = block(x, bias, *rest)
    got = block(x, expand_block_bias(bias, HALF), *rest, True)
    torch.testing.assert_close(got, want, atol=4e-3, rtol=4e-3)
    assert got.isfinite().all()


def test_a_row_whose_keys_are_all_masked(device: str) -> None:
    """The mean of the values, as softmax makes it; an expanded bias ends at fp16's last number, and is then none."""
    problem = x, bias, w = make(32, 2, (3, 5), 1, HALF, device)  # fifteen keys in tiles of sixteen
    bias[:, 3] = torch.finfo(torch.float32).min
    exact = reduced_attention_reference(*cast(problem, torch.float64), (3, 5), 2)
    low = reduced_attention_reference(*problem, (3, 5), 2)
    got = reduced_attention(*problem, (3, 5), 2)
    assert (got.double() - exact).abs().max().item() <= limit(low, exact, HALF, 2)
    rest = (*w[:10], None, None, None, 5, 2, 1e-6, 0.25)
    expanded, none = (expand_block_bias(b, HALF) for b in (bias, bias.masked_fill(bias < -1e38, 0.0)))
    got, want = (torch.ops.vitkernels.reduced_attention_block(x, b, *rest, True) for b in (expanded, none))
    torch.testing.assert_close(got, want, atol=2e-3, rtol=2e-3)


def test_flops_do_not_depend_on_the_form(device: str) -> None:
    """The whole block counts what the composed form's products, convolution and attention count."""
    x, bias, w = make(32, 2, (6, 4), 2, HALF, device)
    totals = []
    for leaf in (x, x.clone().requires_grad_()):  # a gradient to come selects the composed form
        with FlopCounterMode(display=False) as counter:
            reduced_attention(leaf, bias, w, (6, 4), 2)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == reduced_attention_work(2, 24, 6, 32)[0]


@pytest.mark.parametrize("r", [1, 2])
def test_flops_of_the_backward_pass(device: str, r: int) -> None:
    x, bias, w = make(32, 2, (6, 4), r, FULL, device)
    leaf, running = x.clone().requires_grad_(), ("bn_mean", "bn_var")
    w = w._replace(**{n: t.requires_grad_() for n, t in w._asdict().items() if t is not None and n not in running})
    out = reduced_attention(leaf, bias.requires_grad_(), w, (6, 4), 2, training=True)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == reduced_attention_work(2, 24, 24 // r**2, 32, backward=True)[0]


@pytest.mark.parametrize("case", REDUCED_ATTENTION_CASES, ids=lambda case: case.name)
def test_cases_agree_with_the_reference(case: ReducedAttentionCase, device: str) -> None:
    """Each stage of each CMT, at one image and (on the CPU) at most 4 x 8 reduced tokens."""
    on_gpu = device == "cuda"
    side = case.h if on_gpu else min(case.h, 4 * case.r)
    dtype = torch.bfloat16 if on_gpu else HALF
    problem = make(case.C, case.heads, (side, side), case.r, dtype, device, batch=case.B if on_gpu else 1)
    got = reduced_attention(*problem, (side, side), case.heads)
    reference = reduced_attention_reference(*cast(problem, FULL), (side, side), case.heads)
    error = (got.float() - reference).abs().max().item()
    assert error <= 4 * torch.finfo(dtype).eps * reference.abs().max().item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (5, 4)}, r"grid \(5, 4\) should hold the N of x \[2, 24, 32\]"),
        ({"grid": (8, 3)}, r"grid \(8, 3\) should be divisible by the reduction 2"),
        ({"heads": 3}, r"heads 3 should divide the C of x \[2, 24, 32\]"),
        ({"bias": (2, 24, 5)}, r"bias \[2, 24, 5\] should be \[heads, N, M\] = \[2, 24, 6\] for x \[2, 24, 32\]"),
        ({"q_weight": (32, 16)}, r"q_weight \[32, 16\] should be \[32, 32\] for x \[2, 24, 32\]"),
        ({"norm_bias": (31,)}, r"norm_bias \[31\] should be \[32\] for x \[2, 24, 32\]"),
        ({"bn_mean": None}, r"reduce_weight at reduction 2 needs bn_weight, bn_bias, bn_mean and bn_var"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str, device: str) -> None:
    x, bias, w = make(32, 2, (6, 4), 2, FULL, device)
    grid, heads = change.pop("grid", (6, 4)), change.pop("heads", 2)
    if "bias" in change:
        bias = torch.zeros(change.pop("bias"), device=device)
    w = w._replace(**{n: None if s is None else torch.zeros(s, device=device) for n, s in change.items()})
    with pytest.raises(ValueError, match=message):
        reduced_attention(x, bias, w, grid, heads)


def test_product_weights_share_the_dtype_of_x(device: str) -> None:
    x, bias, w = make(32, 2, (6, 4), 2, FULL, device)
    with pytest.raises(ValueError, match=r"k_weight is torch.float16, x is torch.float32"):
        reduced_attention(x, bias, w._replace(k_weight=w.k_weight.half()), (6, 4), 2)


def test_cuda_graph_replays(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    x, bias, w = make(64, 1, (56, 56), 8, torch.bfloat16, device)
    reduced_attention(x, bias, w, (56, 56), 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = reduced_attention(x, bias, w, (56, 56), 1)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, reduced_attention(x, bias, w, (56, 56), 1))
