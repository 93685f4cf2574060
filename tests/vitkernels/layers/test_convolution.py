"""Convolutions with their norms, beside torch's own modules on padded maps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vitkernels.layers import conv_norm_act


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 2, (0, 1)), (4, 1, (1, 2)), (3, 2, (1, 1)), (3, 1, (2, 0))])
def test_padding_that_differs_before_and_after(
    k: int, stride: int, padding: tuple[int, int], groups: int, training: bool, device: str
) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 4, k, stride, groups=groups).to(device), nn.BatchNorm2d(4).to(device).train(training)
    x = torch.randn(2, 4, 7, 8, device=device, requires_grad=True)
    want = F.silu(copy.deepcopy(norm)(conv(F.pad(x, (*padding, *padding)))))
    got = conv_norm_act(x, conv, norm, "silu", padding=padding)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(want)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, conv.weight), grad) for y in (got, want)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
