"""Values and gradients of depthwise_conv2d against fp64, in every kernel: interpreted on the CPU, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vitkernels.depthwise.conv import (
    DEPTHWISE_CONV2D_CASES,
    batch_norm_affine,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    depthwise_conv2d_stats,
)

from ..untouched import untouched

HALF, FULL, BRAIN = torch.float16, torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Shape:
    B: int = 1
    C: int = 5
    H: int = 7
    W: int = 9
    k: int = 3
    stride: int = 1
    padding: int | None = None
    activation: str = "none"
    residual: str | None = None
    affine: bool = False
    bias: bool = True
    channels_last: bool = True
    dtype: torch.dtype = HALF

    def __str__(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        extras = f"{self.activation}-{self.residual}-{'affine' if self.affine else 'plain'}"
        sizes = f"{self.B}x{self.C}x{self.H}x{self.W}-k{self.k}s{self.stride}p{self.padding}"
        return f"{sizes}-{extras}-{layout}-{str(self.dtype)[6:]}"


SHAPES = [
    Shape(B=2, activation="gelu", residual="pre", affine=True),
    Shape(B=2, activation="gelu", residual="pre", affine=True, dtype=FULL),
    Shape(residual="pre", channels_last=False),
    Shape(C=17, H=11, W=10, k=9, activation="gelu", residual="post", affine=True),
    Shape(H=10, k=7, activation="relu", residual="post", affine=True, channels_last=False),
    Shape(k=5, activation="silu", bias=False, affine=True),
    Shape(k=5, activation="gelu_tanh", channels_last=False),
    Shape(B=3, C=1, H=5, W=5, k=2, padding=0),
    Shape(k=4, padding=3, activation="silu"),
    Shape(k=2, channels_last=False, dtype=FULL),
    Shape(B=2, C=8, H=5, W=14, activation="gelu", residual="pre", affine=True),  # a row is one window of 14
    Shape(C=8, H=4, W=27, activation="silu", affine=True),  # the last of two such windows lacks a column
    Shape(C=17, H=4, W=14, activation="gelu", affine=True, channels_last=False),
    Shape(H=1, W=1, residual="post"),
    Shape(H=8, W=16, k=8, stride=8, padding=0, affine=True),
    Shape(H=8, W=12, k=4, stride=4, padding=0, activation="silu", channels_last=False),
    Shape(H=9, W=8, k=5, stride=2, activation="gelu_tanh", affine=True, dtype=FULL, channels_last=False),
    Shape(B=2, C=9, H=8, W=11, k=3, stride=2, activation="silu", bias=False, affine=True),
    Shape(H=9, W=9, k=3, stride=3, padding=0, dtype=FULL),
    Shape(H=10, W=9, k=9, activation="relu", residual="post", affine=True, dtype=FULL),
    Shape(H=9, k=7, residual="pre", channels_last=False, dtype=FULL),
]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that anything a kernel leaves unwritten or reads too far shows."""
    empty = torch.empty

    def fill(*args: object, **kwargs: object) -> Tensor:
        t = empty(*args, **kwargs)
        return t.fill_(float("nan")) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", fill)


def make(shape: Shape, device: str, seed: int = 0) -> list[Tensor | None]:
    """x, weight, bias, scale, shift."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.B, shape.C, shape.H, shape.W, generator=g)
    weight = torch.randn(shape.C, 1, shape.k, shape.k, generator=g) / shape.k
    vectors = [torch.randn(shape.C, generator=g) for _ in range(3)]
    layout = torch.channels_last if shape.channels_last else torch.contiguous_format
    return [
        x.to(device, shape.dtype).to(memory_format=layout),
        weight.to(device, shape.dtype),
        vectors[0].to(device) if shape.bias else None,
        vectors[1].to(device) if shape.affine else None,
        vectors[2].to(device) if shape.affine else None,
    ]


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int | None,
    *,
    activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: str | None,
) -> Tensor:
    """What a model does today: one operator after another, each rounding to x's dtype."""
    cast = [None if t is None else t.to(x.dtype) for t in (bias, scale, shift)]
    padding = weight.shape[-1] // 2 if padding is None else padding
    y = F.conv2d(x, weight, cast[0], stride, padding, groups=x.shape[1])
    y = y + x if residual == "pre" else y
    act: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda u: u,
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    }
    y = act[activation](y)
    y = y if cast[1] is None else y * cast[1][:, None, None]
    y = y if cast[2] is None else y + cast[2][:, None, None]
    return y + x if residual == "post" else y


def run(
    fn: Callable[..., Tensor], shape: Shape, tensors: list[Tensor | None], dtype: torch.dtype | None = None
) -> list[Tensor | None]:
    """The result and the gradients of x, weight, bias, scale and shift, for a fixed random gradient."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    x, weight, bias, scale, shift = leaves
    config = {"activation": shape.activation, "scale": scale, "shift": shift, "residual": shape.residual}
    y = fn(x, weight, bias, shape.stride, shape.padding, **config)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy.to(y))
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def sizes_of_terms(shape: Shape, tensors: list[Tensor | None]) -> list[Tensor | None]:
    """How large the terms are of which each result is the sum; no activation is steeper than gelu."""
    config = {"activation": "none", "residual": shape.residual}
    leaves = [None if t is None else t.detach().double().abs().requires_grad_() for t in tensors]
    x, weight, bias, scale, shift = leaves
    y = depthwise_conv2d_reference(x, weight, bias, shape.stride, shape.padding, scale=scale, shift=shift, **config)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(dy.abs())
    return [None if t is None else STEEPEST * t for t in (y.detach(), *(t if t is None else t.grad for t in leaves))]


STEEPEST = 1.13  # gelu, at its most
NAMES = ("y", "dx", "dweight", "dbias", "dscale", "dshift")


def check(
    got: list[Tensor | None],
    exact: list[Tensor | None],
    low: list[Tensor | None],
    sizes: list[Tensor | None],
    dtype: torch.dtype,
    roundings: float = 2,
) -> None:
    """Errors against fp64 stay within twice the eager operators' own and so many roundings of what was added.

    Eager's own error alone is a matter of luck, and of the processor, where it is small or the truth is zero.
    """
    for name, g, e, lo, size in zip(NAMES, got, exact, low, sizes, strict=True):
        if g is None or e is None or lo is None:
            assert g is None, name
            continue
        assert g.shape == e.shape, name
        error = (g.double() - e).abs()
        allowed = 2 * (lo.double() - e).abs().max() + roundings * torch.finfo(dtype).eps * size
        assert (error <= allowed).all(), (
            f"{name}: error {error.max():.2e}, allowed {allowed.max():.2e}"
        )  # NaN fails too


def verify(shape: Shape, device: str, seed: int = 0) -> None:
    tensors = make(shape, device, seed)
    got = run(depthwise_conv2d, shape, tensors)
    exact = run(depthwise_conv2d_reference, shape, tensors, torch.float64)
    check(got, exact, run(eager, shape, tensors), sizes_of_terms(shape, tensors), shape.dtype)
    assert [None if t is None else t.dtype for t in got[1:]] == [None if t is None else t.dtype for t in tensors]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients_against_fp64(shape: Shape, device: str) -> None:
    verify(shape, device)
    if device == "cuda" and shape.dtype == HALF:
        verify(replace(shape, dtype=BRAIN), device)


@pytest.mark.parametrize("case", DEPTHWISE_CONV2D_CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("poisoned")
def test_forward_at_the_shapes_of_models(case: object, device: str) -> None:
    on_gpu = device == "cuda"
    shape = Shape(
        B=case.B if on_gpu else 1,
        C=case.C if on_gpu else min(case.C, 3),
        H=case.H if on_gpu else min(case.H, 2 * case.k * case.stride),
        W=case.W,
        k=case.k,
        stride=case.stride,
        padding=case.padding,
        activation=case.activation,
        residual=case.residual,
        affine=case.affine,
        bias=case.bias,
        dtype=BRAIN if on_gpu else HALF,
    )
    x, weight, bias, scale, shift = make(shape, device)
    kwargs = {"activation": case.activation, "residual": case.residual}
    y = depthwise_conv2d(x, weight, bias, case.stride, case.padding, scale=scale, shift=shift, **kwargs)
    args = [None if t is None else t.double() for t in (x, weight, bias, scale, shift)]
    exact = depthwise_conv2d_reference(*args[:3], case.stride, case.padding, scale=args[3], shift=args[4], **kwargs)
    low = eager(x, weight, bias, case.stride, case.padding, scale=scale, shift=shift, **kwargs)
    size = sizes_of_terms(shape, [x, weight, bias, scale, shift])[0]
    check([y, *[None] * 5], [exact, *[None] * 5], [low, *[None] * 5], [size, *[None] * 5], shape.dtype)


SHAPE_STRATEGY = st.builds(
    Shape,
    B=st.integers(1, 2),
    C=st.integers(1, 18),
    H=st.integers(4, 10),
    W=st.integers(4, 12),
    k=st.integers(2, 8),
    stride=st.integers(1, 3),
    activation=st.sampled_from(["none", "relu", "silu", "gelu", "gelu_tanh"]),
    affine=st.booleans(),
    bias=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from([HALF, FULL]),
)


@given(shape=SHAPE_STRATEGY, seed=st.integers(0, 9))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_shapes(shape: Shape, seed: int, device: str) -> None:
    verify(shape, device, seed)


@pytest.mark.smoke
@pytest.mark.fast
@pytest.mark.parametrize("dtype", [HALF, FULL], ids=["half", "full"])
def test_strided_inputs(dtype: torch.dtype, device: str) -> None:
    """Tokens of a packed tensor as x, and an expanded gradient: read in place, whatever the strides."""
    base = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    x = base[:, :, 3:10].transpose(1, 2).unflatten(2, (5, 6))  # [2, 7, 5, 6], channels innermost, rows 20 apart
    x = x.detach().requires_grad_()
    weight = torch.randn(7, 1, 3, 3, generator=torch.Generator().manual_seed(1)).to(device, dtype).requires_grad_()
    y = depthwise_conv2d(x, weight, activation="silu")
    y.sum().backward()
    x64, w64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = depthwise_conv2d_reference(x64, w64, activation="silu")
    exact.sum().backward()
    limit = 8 * torch.finfo(dtype).eps
    assert y.stride(1) == 1
    torch.testing.assert_close(y.double(), exact, atol=limit, rtol=limit)
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=limit, rtol=limit)
    torch.testing.assert_close(weight.grad.double(), w64.grad, atol=16 * limit, rtol=limit)


@pytest.mark.parametrize(("dtype", "stride"), [(HALF, 1), (FULL, 1), (HALF, 2)], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_within_the_filter(value: float, dtype: torch.dtype, stride: int, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 12, 40, generator=generator).to(device, dtype)
    weight = torch.randn(3, 1, 3, 3, generator=generator).to(device, dtype)
    want = depthwise_conv2d(x, weight, None, stride)
    x[0, 1, 6, 20] = value
    got = depthwise_conv2d(x, weight, None, stride)
    rows, columns = (stride * torch.arange(n, device=device) for n in got.shape[2:])
    near = torch.zeros_like(got, dtype=torch.bool)
    near[0, 1] = ((rows - 6).abs() <= 1)[:, None] & ((columns - 20).abs() <= 1)
    assert not got[near].isfinite().any()
    limit = 4 * torch.finfo(dtype).eps  # the matrix unit adds up in another order than multiply-adds
    torch.testing.assert_close(got[~near], want[~near], atol=limit, rtol=limit)


@pytest.mark.parametrize("spoilt", ["input", "gradient"])
@pytest.mark.parametrize(
    ("activation", "residual", "k"), [("relu", None, 3), ("gelu", "post", 5), ("silu", "pre", 3)], ids=str
)
def test_results_and_gradients_are_no_numbers_where_the_references_are(
    activation: str, residual: str | None, k: int, spoilt: str, device: str
) -> None:
    """Two images with odd sizes in one program, whose sums of the epilogue's gradient are made again too."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, HALF)

    x, grad = normal(2, 3, 9, 21).contiguous(memory_format=torch.channels_last), normal(2, 3, 9, 21)
    (x if spoilt == "input" else grad)[1, 2, 4, 17] = float("nan")
    results = []
    vectors = [normal(3, 1, k, k), *(normal(3).float() for _ in range(3))]
    for call, dtype in ((depthwise_conv2d, HALF), (depthwise_conv2d_reference, torch.float64)):
        leaves = [(t if dtype == HALF else t.double()).detach().requires_grad_() for t in (x, *vectors)]
        given, weight, bias, scale, shift = leaves
        y = call(given, weight, bias, activation=activation, scale=scale, shift=shift, residual=residual)
        y.backward(grad.to(dtype))
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*results, strict=True):
        assert exact is not None
        assert ours is not None
        assert torch.equal(ours.isnan(), exact.isnan())
        torch.testing.assert_close(ours.double(), exact, atol=0.05, rtol=0.02, equal_nan=True)


@pytest.mark.parametrize(
    ("strides", "stride"),  # of stride 1 on the matrix unit, of stride 2 by multiply-adds
    [((2**30, 5, 1), 1), ((1, 3, 2**29), 1), ((2**30, 5, 1), 2), ((1, 2**29, 3), 2)],
    ids=str,
)
def test_elements_of_an_image_far_apart(strides: tuple[int, int, int], stride: int, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 3, 5, 5, generator=generator).to(device, HALF)
    far = untouched(2**31 + 2**20, HALF, device).as_strided(near.shape, (0, *strides))
    far.copy_(near)
    weights = [torch.randn(3, 1, 3, 3, generator=generator).to(device, HALF).requires_grad_()]
    weights.append(weights[0].detach().requires_grad_())
    results = [depthwise_conv2d(x, w, None, stride) for x, w in zip((near, far), weights, strict=True)]
    for y in results:
        y.sum().backward()
    assert torch.equal(*results)
    torch.testing.assert_close(weights[1].grad, weights[0].grad)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(B=2, activation="gelu", residual="pre"),
        Shape(B=2, H=8, W=8, k=4, stride=4, padding=0, dtype=FULL),
        Shape(B=2, activation="silu", dtype=FULL, channels_last=False),
        Shape(B=16, H=4, W=16, activation="silu"),  # every window is whole
        Shape(B=3, C=8, H=4, W=14, activation="gelu", residual="pre"),  # windows of 14
    ],
    ids=str,
)
@pytest.mark.usefixtures("poisoned")
def test_sums_train_a_batch_norm(shape: Shape, device: str) -> None:
    """The norm built from the sums has the values and gradients of F.batch_norm after the activation.

    A variance as mean of squares less square of the mean loses mean^2 / variance of its digits, which the floor grants.
    """
    tensors = make(shape, device)[:3]
    gamma, beta = torch.rand(shape.C) + 0.5, torch.randn(shape.C)
    config = {"activation": shape.activation, "residual": shape.residual}

    def fused(x: Tensor, w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y, sums = depthwise_conv2d_stats(x, w, b, shape.stride, shape.padding, **config)
        scale, shift, mean, variance = batch_norm_affine(sums, y.numel() // shape.C, gamma, beta)
        torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(variance.double(), y.double().var((0, 2, 3), correction=0), atol=2e-3, rtol=1e-2)
        return y.float() * scale[:, None, None] + shift[:, None, None]

    def plain(x: Tensor, w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = depthwise_conv2d_reference(x, w, b, shape.stride, shape.padding, **config)
        return F.batch_norm(y, None, None, gamma.to(y), beta.to(y), training=True)

    y64 = depthwise_conv2d_reference(*(t.double() for t in tensors), shape.stride, shape.padding, **config)
    condition = (1 + y64.mean((0, 2, 3)) ** 2 / y64.var((0, 2, 3))).max().item()
    results = []
    for fn, dtype in ((fused, None), (plain, torch.float64), (plain, None)):
        leaves = [
            t.detach().to(dtype or t.dtype).requires_grad_() for t in (*tensors, gamma.to(device), beta.to(device))
        ]
        y = fn(*leaves)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)).sum().backward()
        results.append([y.detach(), *(t.grad for t in leaves)])
    # A norm takes the mean away from all that was added, so the largest result stands for the terms.
    sizes = [truth.abs().max() for truth in results[1]]
    check(results[0], results[1], results[2], sizes, shape.dtype, roundings=8 * condition)


@pytest.mark.parametrize("dtype", [HALF, FULL], ids=["half", "full"])
def test_repeats_bit_for_bit(dtype: torch.dtype, device: str) -> None:
    shape = Shape(B=4, C=20, H=12, W=12, activation="gelu", affine=True, dtype=dtype)
    if device == "cuda":
        shape = replace(shape, B=32, C=96, H=56, W=56)
    tensors = make(shape, device)
    first, second = (run(depthwise_conv2d, shape, tensors) for _ in range(2))
    for name, a, b in zip(NAMES, first, second, strict=True):
        assert torch.equal(a, b), name


def test_cuda_graph_replays(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    shape = Shape(B=2, C=64, H=28, W=28, activation="gelu", affine=True, dtype=BRAIN)
    x, weight, bias, scale, shift = make(shape, device)
    leaves = [t.requires_grad_() for t in (x, weight, bias, scale, shift)]

    def step() -> tuple[Tensor, ...]:
        y = depthwise_conv2d(x, weight, bias, activation="gelu", scale=scale, shift=shift)
        y = depthwise_conv2d(y, weight, bias, activation="gelu", scale=scale, shift=shift)
        return (y, *torch.autograd.grad(y.sum(), leaves))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)
