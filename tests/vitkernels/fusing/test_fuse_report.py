"""What `fuse` leaves as it is, and the reasons that its report gives."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
import vitkernels
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def test_the_report_says_what_is_left_and_why(timm: ModuleType) -> None:
    from timm.models.maxxvit import AttentionCl
    from timm.models.swin_transformer import WindowAttention

    model = nn.ModuleDict(
        {
            "dropout": WindowAttention(32, 2, window_size=4, attn_drop=0.1),
            "narrow": WindowAttention(16, 2, window_size=4),
            "unbiased": AttentionCl(32, dim_head=16),
            "dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
            "dense": nn.Conv2d(8, 8, 3),
            "served": nn.Conv2d(8, 8, 3, groups=8),
        }
    )
    report = vitkernels.fuse(model)
    reasons = {one.name: one.text for one in report.left}
    assert [one.name for one in report.swapped] == ["served"]
    assert reasons.keys() == {"dropout", "narrow", "unbiased", "dilated"}
    assert "dropout" in reasons["dropout"]
    assert "head dims from 16 to 128, this is 8" in reasons["narrow"]
    assert reasons["unbiased"] == (
        "it has no bias of its own: torch's own fused attention serves it, and takes one that blocks share as a mask"
    )
    assert "undilated" in reasons["dilated"]
    assert str(report).splitlines()[0] == "1 modules run on fused kernels, 4 were left as they are"


def test_a_subclass_of_a_known_class_is_left(timm: ModuleType) -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    report = vitkernels.fuse(nn.Sequential(Own(8, 8, 3, groups=8)))
    assert report.swapped == ()
    assert [(one.name, one.class_name) for one in report.left] == [("0", "Own")]
    assert report.left[0].text == "it is derived from Conv2d and may compute something else"


def test_a_subclass_that_is_only_built_otherwise_is_served() -> None:
    """As EfficientNet of transformers has its depthwise convolutions."""

    class Widened(nn.Conv2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 3, padding=1, groups=channels)

    model = nn.Sequential(Widened(8))
    x = torch.randn(2, 8, 5, 6)
    want = model(x)
    assert [(one.name, one.class_name) for one in vitkernels.fuse(model).swapped] == [("0", "Widened")]
    torch.testing.assert_close(model(x), want, atol=1e-5, rtol=1e-5)
    assert type(copy.deepcopy(model)[0]) is type(model[0])
    assert vitkernels.unfuse(model) == 1
    assert type(model[0]) is Widened


def test_a_parametrised_module_is_in_the_report() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    parametrizations.weight_norm(model[0])
    report = vitkernels.fuse(model)
    assert report.swapped == ()
    assert [(one.name, one.class_name, one.text) for one in report.left] == [("0", "Conv2d", "it has parametrisations")]


def test_attention_with_a_bias_that_no_rule_knows_is_in_the_report(timm: ModuleType) -> None:
    from timm.models.mvitv2 import MultiScaleAttention
    from timm.models.vision_transformer import Attention as Unbiased
    from timm.models.vision_transformer_sam import Attention

    class OwnAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_biases = nn.Parameter(torch.zeros(2, 16))

    model = nn.ModuleDict(
        {
            "sam": Attention(32, 2, use_rel_pos=True, input_size=(4, 4)),
            "mvit": MultiScaleAttention(32, 32, (4, 4), num_heads=2, rel_pos_type="spatial", has_cls_token=False),
            "own": OwnAttention(),
            "unbiased": Unbiased(32, 2),
        }
    )
    report = vitkernels.fuse(model)
    assert report.swapped == ()
    assert {one.name for one in report.left} == {"sam", "mvit", "own"}
    assert all("no rule says how its attention computes its bias" in one.text for one in report.left)


def test_attention_whose_bias_is_known_is_left_where_no_kernel_fits(timm: ModuleType) -> None:
    from timm.models.efficientformer_v2 import Attention2d
    from timm.models.levit import Attention
    from timm.models.swin_transformer_v2 import WindowAttention

    model = nn.ModuleDict(
        {
            "talking": Attention2d(32, 16, 2, resolution=4),
            "wide keys": Attention(32, 32, 2, attn_ratio=0.5, resolution=4),
            "narrow": Attention(32, 8, 2, attn_ratio=1, resolution=4),
            "wide": WindowAttention(320, (4, 4), 2),
        }
    )
    left = {one.name: one.text for one in vitkernels.fuse(model).left}
    assert "talking heads" in left["talking"]
    assert "more channels" in left["wide keys"]
    assert "this is 8" in left["narrow"]
    assert "this is 160" in left["wide"]


def test_another_version_of_a_known_class_is_left(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.convmixer import Residual
    from timm.models.swin_transformer import WindowAttention

    def forward(self: Any, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        return x

    other = Residual(nn.Identity())
    del other.fn
    model = nn.ModuleDict({"without": other, "called": WindowAttention(32, 2, window_size=4)})
    monkeypatch.setattr(WindowAttention, "forward", forward)
    report = vitkernels.fuse(model)
    assert report.swapped == ()
    reasons = {one.name: one.text for one in report.left}
    assert "without fn" in reasons["without"]
    assert "calls it with (x, key_mask)" in reasons["called"]
