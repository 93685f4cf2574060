"""The fused bundle in every family that it serves, against eager with the same weights; kernels run interpreted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitbench import verify
from vitbench.fused import FUSED
from vitbench.models.cmt import CMT, CMTConfig
from vitbench.models.coatnet import CoAtNet, CoAtNetConfig, MBConvConfig
from vitbench.models.convit import ConViT, ConViTConfig
from vitbench.models.convmixer import ConvMixer, ConvMixerConfig
from vitbench.models.efficient_vit import Features
from vitbench.models.efficientnet import EfficientNet, EfficientNetConfig, Stage
from vitbench.ops import EAGER, Ops

Build = Callable[[Ops], nn.Module]
_STAGES = (Stage(1, 3, 1, 1, 16), Stage(2, 5, 2, 3, 16))
_NET = EfficientNetConfig(0.5, 1.0, dropout=0.2, stages=_STAGES)
_RW = MBConvConfig(
    pool="avg2", stride_in="depthwise", activation="silu", pre_activation=True, squeeze_first=True, output_norm=True,
    expansion=2,
)  # fmt: skip
_COATNET = CoAtNetConfig((16, 16, 32, 32), (1, 1, 1, 1), (8, 8), conv=MBConvConfig(expansion=2))
_COATNET_RW = CoAtNetConfig((16, 16), (1, 2), (8, 8), layout="CC", conv=_RW)
CASES: dict[str, tuple[tuple[int, int], Build]] = {
    "cmt": ((32, 64), lambda ops: CMT(CMTConfig(16, (16, 32, 64, 128), (1, 1, 1, 1), 2, 0.1, 0.1), ops, (32, 64), 10)),
    "coatnet": ((32, 64), lambda ops: CoAtNet(ops, _COATNET, (32, 64), 10)),
    "coatnet_rw": ((16, 16), lambda ops: CoAtNet(ops, _COATNET_RW, (16, 16), 10)),
    "convit": ((32, 48), lambda ops: ConViT(ops, ConViTConfig(4, 16, 1, 1), (32, 48), 10)),
    "convmixer": ((24, 32), lambda ops: ConvMixer(ops, ConvMixerConfig(16, 2, kernel=5, patch=8), 10)),
    "convmixer_relu": ((24, 32), lambda ops: ConvMixer(ops, ConvMixerConfig(16, 1, 7, 8, "relu"), 10)),
    "efficientnet": ((16, 16), lambda ops: EfficientNet(ops, _NET, 10)),
    "efficient_vit": (
        (16, 16),
        lambda ops: nn.Sequential(Features(ops, _NET, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ),
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def pair(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Eager and fused with the same weights; statistics and vectors away from what they start as."""
    torch.manual_seed(seed)
    build = CASES[name][1]
    eager, fused = build(EAGER), build(FUSED)
    with torch.no_grad():
        for key, tensor in eager.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    fused.load_state_dict(eager.state_dict())
    return eager, fused


def image(name: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *CASES[name][0], generator=torch.Generator().manual_seed(1))


def differs(eager: nn.Module, fused: nn.Module, x: Tensor, mode: str = "infer", **how: torch.dtype) -> float:
    return verify.relative_error(verify.run(fused, x, mode, **how), verify.run(eager, x, mode, **how))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_inference_agrees_with_eager(name: str, layout: str) -> None:
    eager, fused = (model.eval().to(memory_format=LAYOUTS[layout]) for model in pair(name))
    x = image(name).to(memory_format=LAYOUTS[layout])
    assert differs(eager, fused, x) < verify.FLOOR


@pytest.mark.parametrize("name", [name for name in CASES if name != "efficient_vit"])
def test_training_agrees_with_eager_in_every_gradient_and_statistic(name: str) -> None:
    eager, fused = (model.train() for model in pair(name))
    x = image(name).to(memory_format=torch.channels_last)
    want = verify.run(eager, x, "train")
    got = verify.run(fused, x, "train")
    assert got.gradients.keys() == want.gradients.keys() == dict(eager.named_parameters()).keys()
    assert verify.relative_error(got, want) < 1e-4
    for model in (eager, fused):
        with verify.without_dropout(model):
            model(x)
    for (key, ours), theirs in zip(fused.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=key)
