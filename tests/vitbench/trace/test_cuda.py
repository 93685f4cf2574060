"""CUDA's choices on fake tensors: which attention kernel, dropout masks, copies for matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.trace import cuda
from vitbench.trace.attention import choose
from vitbench.trace.tracer import Tracer

HALF, FULL = torch.float16, torch.float32
aten = torch.ops.aten


@contextmanager
def traced() -> Iterator[Tracer]:
    instead = cuda.instead()
    tracer = Tracer(instead, cuda.inside)
    with cuda.rules(instead), tracer:
        yield tracer


def rise(run: Callable[[Tracer], Any]) -> list[int]:
    """The bytes of every storage that comes while `run` runs."""
    with traced() as tracer:
        made = run(tracer)
        before = len(tracer.sizes)
        with tracer.recording({}):
            result = made()
        del result
    return tracer.sizes[before:]


def heads(dtype: torch.dtype, tokens: int = 20, width: int = 32, grad: bool = False) -> tuple[Tensor, ...]:
    return tuple(torch.empty(2, 3, tokens, width, dtype=dtype, requires_grad=grad) for _ in range(3))


@pytest.mark.parametrize(
    ("dtype", "width", "mask", "learned", "cudnn", "kernel"),
    [
        (HALF, 32, False, False, False, "flash"),
        (HALF, 30, False, False, True, "flash"),
        (HALF, 32, False, False, True, "cudnn"),
        (HALF, 160, False, False, True, "flash"),
        (HALF, 32, True, False, False, "efficient"),
        (HALF, 32, True, True, True, "efficient"),
        (HALF, 36, True, False, False, "math"),
        (FULL, 32, False, False, True, "efficient"),
        (FULL, 30, False, False, False, "math"),
        (torch.float64, 32, False, False, False, "math"),
    ],
)
def test_the_kernel_that_cuda_takes(
    dtype: torch.dtype, width: int, mask: bool, learned: bool, cudnn: bool, kernel: str
) -> None:
    q, k, v = heads(dtype, width=width)
    bias = torch.empty(1, 3, 20, 20, dtype=dtype, requires_grad=learned) if mask else None
    assert choose(q, k, v, bias, 0.0, False, False, cudnn) == kernel


def test_flash_attention_stores_a_result_and_a_number_for_each_row() -> None:
    q, k, v = 2 * 3 * 20 * 32 * 2, 2 * 3 * 20 * 4, 16
    sizes = rise(lambda _: (lambda given: lambda: F.scaled_dot_product_attention(*given))(heads(HALF, grad=True)))
    assert sizes[:2] == [q, k]
    assert sum(sizes[2:]) <= 2 * v


def test_masks_are_padded_once_for_all_images_and_heads() -> None:
    def run(_: Tracer) -> Callable[[], Tensor]:
        q, k, v = heads(HALF)
        mask = torch.empty(1, 1, 20, 20, dtype=HALF)
        return lambda: F.scaled_dot_product_attention(q, k, v, mask)

    assert rise(run)[0] == 20 * 24 * 2


def test_the_backward_pass_of_flash_attention_adds_up_in_fp32() -> None:
    def run(_: Tracer) -> Callable[[], None]:
        out = F.scaled_dot_product_attention(*heads(HALF, grad=True))
        return lambda: out.sum().backward()

    assert 4 * 2 * 3 * 128 * (32 + 1) in rise(run)


@pytest.mark.parametrize("grad", [False, True])
def test_dropout_keeps_a_byte_an_element(grad: bool) -> None:
    def run(_: Tracer) -> Callable[[], Tensor]:
        x = torch.empty(64, 512, requires_grad=grad)
        return lambda: F.dropout(x, 0.1)

    assert sorted(rise(run)) == [64 * 512, 64 * 512 * 4]


def test_softmax_makes_fp32_of_fp16_itself_and_of_bf16_by_a_copy() -> None:
    def run(dtype: torch.dtype) -> list[int]:
        return rise(lambda _: (lambda x: lambda: x.softmax(-1, dtype=FULL))(torch.empty(64, 64, dtype=dtype)))

    assert run(HALF) == [64 * 64 * 4]
    assert run(torch.bfloat16) == [64 * 64 * 4] * 2


def test_the_rules_hold_inside_of_torchs_own_modules() -> None:
    def run(_: Tracer) -> Callable[[], Any]:
        attention = nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True)
        x = torch.empty(2, 50, 32, requires_grad=True)
        return lambda: attention(x, x, x, need_weights=False)

    scores = 2 * 4 * 50 * 50
    assert not {scores, 4 * scores} & set(rise(run))


def test_cublas_gets_a_copy_of_what_it_cannot_read() -> None:
    with Tracer():
        a, b = torch.empty(8, 16), torch.empty(16, 4)
        for x in (a, a.t(), torch.empty(8, 32)[:, :16]):
            assert cuda.inside(aten.mm.default, (x, b), None) == 0
        assert cuda.inside(aten.mm.default, (torch.empty(1, 1).expand(8, 16), b), None) == 8 * 16 * 4
        assert cuda.inside(aten.mm.default, (torch.empty(8, 32)[:, ::2], b), None) == 8 * 16 * 4


def test_the_cpus_own_operators_are_back_afterwards() -> None:
    with traced():
        pass
    x = torch.ones(1, 1, 2, 8, requires_grad=True)
    assert "Flash" in type(F.scaled_dot_product_attention(x, x, x).grad_fn).__name__
    assert torch.equal(torch.ones(2, 2, dtype=HALF).softmax(-1, dtype=FULL), torch.full((2, 2), 0.5))
