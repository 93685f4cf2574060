"""Depthwise kernels read nothing behind the end of their inputs. Needs the CPU's protected pages: the interpreter."""

from __future__ import annotations

import pytest
import torch
from vitkernels import depthwise_conv2d

from ..guarded import end_of_child, guarded


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("sizes", "k", "stride", "channels_last"),
    [((9, 7, 11), 3, 1, False), ((9, 7, 11), 3, 1, True), ((5, 9, 9), 3, 2, True), ((5, 6, 6), 5, 2, False)],
    ids=str,
)
def test_depthwise_convolution_reads_its_inputs_alone(
    sizes: tuple[int, int, int], k: int, stride: int, channels_last: bool, dtype: torch.dtype, device: str
) -> None:
    if device != "cpu":
        pytest.skip("a GPU has no pages that end a process")
    c, h, w = sizes
    x = guarded(torch.randn((1, h, w, c) if channels_last else (1, c, h, w)).to(dtype))
    x = x.permute(0, 3, 1, 2) if channels_last else x
    weight, bias = guarded(torch.randn(c, 1, k, k).to(dtype)), guarded(torch.randn(c))

    def forward_and_backward() -> None:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        depthwise_conv2d(*leaves, stride, activation="gelu").sum().backward()

    assert end_of_child(forward_and_backward) == 0
