"""`fuse` in the other libraries' own modules: the same outputs, gradients and statistics, and all of it undone."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import vitkernels
from torch import Tensor, nn

IMAGE = (2, 3, 32, 32)
Made = tuple[nn.Module, tuple[Any, ...], set[str]]


def swin(timm: ModuleType) -> Made:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        32, 4, embed_dim=32, depths=(2,), num_heads=(2,), window_size=4, num_classes=5, drop_path_rate=0
    )
    return model, (torch.randn(IMAGE),), {"WindowAttention"}


def beit(timm: ModuleType) -> Made:
    from timm.models.beit import Beit

    model = Beit(
        32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=5, use_rel_pos_bias=True, use_abs_pos_emb=False,
        init_values=0.3,
    )  # fmt: skip
    return model, (torch.randn(IMAGE),), {"Attention"}


def maxvit(timm: ModuleType) -> Made:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    config = MaxxVitCfg(
        embed_dim=(32, 32), depths=(1, 1), block_type=("M", "T"), stem_width=16, head_hidden_size=None,
        conv_cfg=MaxxVitConvCfg(expand_ratio=1, pre_norm_act=False),
        transformer_cfg=MaxxVitTransformerCfg(window_size=(4, 4), grid_size=(4, 4), dim_head=16, expand_ratio=1),
    )  # fmt: skip
    return MaxxVit(config, 32, num_classes=5), (torch.randn(IMAGE),), {"AttentionCl", "MbConvBlock", "Attention2d"}


def relpos(timm: ModuleType) -> Made:
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    model = VisionTransformerRelPos(32, 8, num_classes=5, embed_dim=32, depth=1, num_heads=2, init_values=None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, (torch.randn(IMAGE),), {"RelPosAttention"}


def convit(timm: ModuleType) -> Made:
    from timm.models.convit import ConVit

    model = ConVit(32, 8, num_classes=5, embed_dim=16, depth=2, num_heads=4, local_up_to_layer=1)
    return model, (torch.randn(IMAGE),), {"GPSA"}


def convnext(timm: ModuleType) -> Made:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(16,) * 4), (torch.randn(IMAGE),), {"Conv2d"}


def convmixer(timm: ModuleType) -> Made:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(16, 2, kernel_size=5, patch_size=4, num_classes=5), (torch.randn(IMAGE),), {"Residual"}


def efficientnet(timm: ModuleType) -> Made:
    from timm.layers import SqueezeExcite
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    model = nn.Sequential(
        DepthwiseSeparableConv(8, 8, act_layer=nn.SiLU, se_layer=SqueezeExcite),
        InvertedResidual(8, 8, exp_ratio=2, act_layer=nn.Hardswish),
        InvertedResidual(8, 16, 5, stride=2, exp_ratio=2, act_layer=nn.ReLU6),
    )
    return model, (torch.randn(2, 8, 8, 8),), {"DepthwiseSeparableConv", "InvertedResidual"}


def mobilenet_v4(timm: ModuleType) -> Made:
    from timm.models._efficientnet_blocks import UniversalInvertedResidual

    model = nn.Sequential(
        UniversalInvertedResidual(8, 8, 3, 5, exp_ratio=2, layer_scale_init_value=0.3),
        UniversalInvertedResidual(8, 8, 0, 3, 3, stride=2, exp_ratio=2, act_layer=nn.ReLU6),
    )
    return model, (torch.randn(2, 8, 8, 8),), {"ConvNormAct"}


def pvt(timm: ModuleType) -> Made:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    model = PyramidVisionTransformerV2(
        num_classes=5, depths=(1,), embed_dims=(16,), num_heads=(1,), sr_ratios=(2,), mlp_ratios=(2.0,)
    )
    return model, (torch.randn(IMAGE),), {"MlpWithDepthwiseConv"}


def swin2(timm: ModuleType) -> Made:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    model = SwinTransformerV2(
        32, 4, embed_dim=32, depths=(2,), num_heads=(2,), window_size=4, num_classes=5, drop_path_rate=0
    )
    return sharpened(model), (torch.randn(IMAGE),), {"WindowAttention"}


def sharpened(model: nn.Module) -> nn.Module:
    """With one head whose logits are scaled by more than they may."""
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data.view(-1)[0] = 5.0
    return model


def swin2_cr(timm: ModuleType) -> Made:
    from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr

    model = SwinTransformerV2Cr(
        32, patch_size=4, embed_dim=32, depths=(2,), num_heads=(2,), window_size=4, num_classes=5, drop_path_rate=0
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return sharpened(model), (torch.randn(IMAGE),), {"WindowMultiHeadAttention"}


def gcvit(timm: ModuleType) -> Made:
    from timm.models.gcvit import WindowAttentionGlobal

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = WindowAttentionGlobal(32, 2, (3, 4), use_global=False)
            self.across = WindowAttentionGlobal(32, 2, (3, 4))

        def forward(self, x: Tensor, q_global: Tensor) -> Tensor:
            return self.across(self.inside(x), q_global)

    return Both(), (torch.randn(6, 12, 32), torch.randn(2, 3, 4, 32)), {"WindowAttentionGlobal"}


def levit(timm: ModuleType) -> Made:
    from timm.models.levit import Attention, AttentionDownsample

    model = nn.Sequential(
        Attention(32, 16, 2, attn_ratio=2, resolution=(3, 4)),
        AttentionDownsample(32, 48, 16, 2, attn_ratio=3, resolution=(3, 4)),
    )
    return model, (torch.randn(2, 12, 32),), {"Attention", "AttentionDownsample"}


def levit_conv(timm: ModuleType) -> Made:
    from timm.models.levit import Attention, AttentionDownsample

    model = nn.Sequential(
        Attention(32, 16, 2, attn_ratio=2, resolution=(3, 4), use_conv=True),
        AttentionDownsample(32, 48, 16, 2, attn_ratio=3, resolution=(3, 4), use_conv=True, use_pool=True),
    )
    return model, (torch.randn(2, 32, 3, 4),), {"Attention", "AttentionDownsample"}


def tiny_vit(timm: ModuleType) -> Made:
    from timm.models.tiny_vit import Attention

    return (
        nn.Sequential(Attention(32, 16, 2, attn_ratio=1, resolution=(3, 4))),
        (torch.randn(2, 12, 32),),
        {"Attention"},
    )


def efficientformer(timm: ModuleType) -> Made:
    from timm.models.efficientformer import Attention

    return nn.Sequential(Attention(32, 16, 2, attn_ratio=2, resolution=3)), (torch.randn(2, 9, 32),), {"Attention"}


def efficientformer_v2(timm: ModuleType) -> Made:
    from timm.models.efficientformer_v2 import Attention2dDownsample

    model = nn.Sequential(Attention2dDownsample(32, 16, 2, 2, resolution=(4, 6)))
    return model, (torch.randn(2, 32, 4, 6),), {"Attention2dDownsample", "Conv2d"}


def efficientvit(timm: ModuleType) -> Made:
    from timm.models.efficientvit_msra import LocalWindowAttention

    model = nn.Sequential(
        LocalWindowAttention(64, 16, 2, attn_ratio=2, resolution=6, window_resolution=3, kernels=(5, 3))
    )
    return model, (torch.randn(2, 64, 5, 6),), {"CascadedGroupAttention", "Conv2d"}


def padded_as_tensorflow(timm: ModuleType) -> Made:
    """Even and odd sizes, both axes alike or not."""
    from timm.layers import create_conv2d
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

    model = nn.Sequential(
        DepthwiseSeparableConv(8, 8, stride=2, pad_type="same", act_layer=nn.SiLU),
        InvertedResidual(8, 16, 5, stride=2, exp_ratio=2, pad_type="same", act_layer=nn.ReLU6),
        create_conv2d(16, 16, 3, stride=2, padding="same", depthwise=True),
        create_conv2d(16, 16, 3, stride=2, padding="same", depthwise=True),
    )
    return model, (torch.randn(2, 8, 20, 24),), {"DepthwiseSeparableConv", "InvertedResidual", "Conv2dSame"}


def torchvision_swin2(timm: ModuleType) -> Made:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    model = SwinTransformer(
        [4, 4], 32, [2], [2], [4, 4], stochastic_depth_prob=0.0, num_classes=5, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip
    return sharpened(model), (torch.randn(2, 3, 32, 28),), {"ShiftedWindowAttentionV2"}


def torchvision_maxvit(timm: ModuleType) -> Made:
    from torchvision.models.maxvit import PartitionAttentionLayer

    model = PartitionAttentionLayer(
        32,
        16,
        3,
        "window",
        (6, 9),
        2,
        nn.GELU,
        nn.LayerNorm,
        attention_dropout=0,
        mlp_dropout=0,
        p_stochastic_dropout=0,
    )
    return model, (torch.randn(2, 32, 6, 9),), {"RelativePositionalMultiHeadAttention"}


def torchvision_swin(timm: ModuleType) -> Made:
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 32, [2], [2], [4, 4], stochastic_depth_prob=0.0, num_classes=5)
    return model, (torch.randn(2, 3, 32, 28),), {"ShiftedWindowAttention"}  # 7 columns, padded to 8


def torchvision_mobilenet(timm: ModuleType) -> Made:
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.mobilenetv3 import InvertedResidual as WithAttention
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    config = InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)
    model = nn.Sequential(InvertedResidual(8, 8, 1, 2), WithAttention(config, nn.BatchNorm2d))
    return model, (torch.randn(2, 8, 8, 8),), {"Conv2dNormActivation"}


def torchvision_convnext(timm: ModuleType) -> Made:
    from torchvision.models.convnext import CNBlock

    return nn.Sequential(CNBlock(16, 0.5, 0.0)), (torch.randn(2, 16, 8, 8),), {"Conv2d"}


def _of(model: Any) -> nn.Module:
    """Logits instead of a dictionary with them."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).logits

    return Logits()


def transformers_swin(timm: ModuleType) -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=32, depths=[2], num_heads=[2], window_size=4, drop_path_rate=0.0,
        num_labels=5,
    )  # fmt: skip
    return _of(SwinForImageClassification(config)), (torch.randn(IMAGE),), {"SwinAttention"}


def transformers_beit(timm: ModuleType) -> Made:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        use_relative_position_bias=True, drop_path_rate=0.0, num_labels=5,
    )  # fmt: skip
    return _of(BeitForImageClassification(config)), (torch.randn(IMAGE),), {"BeitAttention"}


def transformers_segformer(timm: ModuleType) -> Made:
    from transformers import SegformerConfig, SegformerForImageClassification

    config = SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[2], hidden_sizes=[16], patch_sizes=[7], strides=[4],
        num_attention_heads=[1], mlp_ratios=[2], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0, drop_path_rate=0.0, num_labels=5,
    )  # fmt: skip
    return _of(SegformerForImageClassification(config)), (torch.randn(IMAGE),), {"SegformerMixMLP"}


def transformers_swin2(timm: ModuleType) -> Made:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        image_size=32, patch_size=4, embed_dim=32, depths=[2], num_heads=[2], window_size=4, drop_path_rate=0.0,
        num_labels=5,
    )  # fmt: skip
    return _of(sharpened(Swinv2ForImageClassification(config))), (torch.randn(IMAGE),), {"Swinv2SelfAttention"}


def transformers_data2vec(timm: ModuleType) -> Made:
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    config = Data2VecVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        use_relative_position_bias=True, use_shared_relative_position_bias=True, drop_path_rate=0.0, num_labels=5,
    )  # fmt: skip
    model = Data2VecVisionForImageClassification(config)
    return _of(model), (torch.randn(IMAGE),), {"Data2VecVisionSdpaSelfAttention"}


def transformers_levit(timm: ModuleType) -> Made:
    from transformers.models.levit.modeling_levit import LevitAttention, LevitAttentionSubsample

    model = nn.Sequential(LevitAttention(32, 16, 2, 2, 4), LevitAttentionSubsample(32, 48, 16, 2, 3, 2, 4, 2))
    return model, (torch.randn(2, 16, 32),), {"LevitAttention", "LevitAttentionSubsample"}


def transformers_efficientnet(timm: ModuleType) -> Made:
    from transformers import EfficientNetConfig
    from transformers.models.efficientnet.modeling_efficientnet import EfficientNetDepthwiseLayer

    model = nn.Sequential(
        EfficientNetDepthwiseLayer(EfficientNetConfig(), 8, 1, 3, True),
        EfficientNetDepthwiseLayer(EfficientNetConfig(), 8, 2, 5, True),
        EfficientNetDepthwiseLayer(EfficientNetConfig(), 8, 2, 3, False),
    )
    return model, (torch.randn(2, 8, 12, 14),), {"EfficientNetDepthwiseLayer"}


MODELS: dict[str, Callable[[ModuleType], Made]] = {
    make.__name__: make
    for make in (
        swin, swin2, swin2_cr, beit, maxvit, relpos, convit, gcvit, levit, levit_conv, tiny_vit, efficientformer,
        efficientformer_v2, efficientvit, convnext, convmixer, efficientnet, padded_as_tensorflow, mobilenet_v4, pvt,
        torchvision_swin, torchvision_swin2, torchvision_maxvit, torchvision_convnext, torchvision_mobilenet,
        transformers_swin, transformers_swin2, transformers_beit, transformers_data2vec, transformers_levit,
        transformers_segformer, transformers_efficientnet,
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest, timm: ModuleType, device: str) -> Made:
    return make(request.param, timm, device)


def make(name: str, timm: ModuleType, device: str) -> Made:
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs, classes = MODELS[name](timm)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
            elif ("relative_position_bias" in key or "attention_biases" in key) and tensor.is_floating_point():
                tensor.normal_()
    layouts = (torch.channels_last if x.ndim == 4 else torch.preserve_format for x in inputs)
    inputs = tuple(x.to(device, memory_format=layout) for x, layout in zip(inputs, layouts, strict=True))
    return model.to(device), inputs, classes


def learn(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of a training pass and the gradients of all parameters that have one."""
    model.zero_grad()
    out = model(*inputs)
    (out * torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(got: Tensor, want: Tensor, what: str = "output") -> None:
    scale = max(want.norm().item(), 1e-3 * want.numel() ** 0.5)
    assert (got - want).norm().item() <= 1e-4 * scale, what


def test_evaluation_is_the_same_and_undone_exactly(made: Made) -> None:
    model, inputs, classes = made
    model.eval()
    kinds = {name: type(module) for name, module in model.named_modules()}
    contents = {name: (dict(vars(m)), list(m._parameters.items())) for name, m in model.named_modules()}
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        want = model(*inputs)
        report = vitkernels.fuse(model)
        assert {one.class_name for one in report.swapped} == classes
        close(model(*inputs), want)
        close(model(*inputs), want)  # with what the first call kept
    assert all(isinstance(module, kinds[name]) for name, module in model.named_modules())
    assert vitkernels.fuse(model) == vitkernels.FuseReport((), report.left)
    assert vitkernels.unfuse(model) == len(report.swapped)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    for name, module in model.named_modules():
        assert vars(module).keys() == contents[name][0].keys()
        assert all(p is q for (_, p), (_, q) in zip(module._parameters.items(), contents[name][1], strict=True))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(*inputs), want)


def test_training_is_the_same_in_every_gradient_and_statistic(made: Made) -> None:
    model, inputs, _ = made
    twin = copy.deepcopy(model)
    want, gradients = learn(model.train(), inputs)
    vitkernels.fuse(twin)
    got, ours = learn(twin.train(), inputs)
    close(got, want)
    assert ours.keys() == gradients.keys()
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        if gradient.abs().max() > 1e-5 * largest:  # else zero but for rounding
            close(ours[name], gradient, name)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["swin", "swin2", "convit", "convmixer", "efficientnet"])
def test_low_precision_errs_no_more_than_twice_as_much(
    name: str, dtype: torch.dtype, timm: ModuleType, device: str
) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter has no bf16 constants")
    model, inputs, _ = make(name, timm, device)
    model.eval()
    low = tuple(x.to(dtype) for x in inputs)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*(x.double() for x in inputs))
        own = (model.to(dtype)(*low) - exact).norm().item()
        vitkernels.fuse(model)
        got = model(*low)
    assert got.dtype == dtype
    assert (got - exact).norm().item() <= 2 * own + torch.finfo(dtype).eps * exact.norm().item()


@pytest.mark.parametrize("name", [pytest.param("swin", marks=pytest.mark.smoke), "torchvision_swin", "efficientnet"])
def test_copies_and_pickles_are_fused_and_work(name: str, timm: ModuleType, device: str) -> None:
    model, inputs, _ = make(name, timm, device)
    model.eval()
    swapped = len(vitkernels.fuse(model).swapped)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        want = model(*inputs)
        for twin in (
            copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
        ):  # fmt: skip
            assert sum(map(vitkernels.is_fused, twin.modules())) == swapped
            assert torch.equal(twin(*inputs), want)
            assert vitkernels.unfuse(twin) == swapped
            close(twin(*inputs), want)


@pytest.mark.parametrize("name", ["swin", "swin2", "maxvit", "convnext", "levit_conv"])
def test_compiles_without_a_graph_break(name: str, timm: ModuleType, device: str) -> None:
    model, inputs, _ = make(name, timm, device)
    vitkernels.fuse(model.eval())
    with torch.no_grad():
        want = model(*inputs)
        close(torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs), want)


@pytest.mark.parametrize("name", ["torchvision_swin", "efficientnet"])
def test_exports(name: str, timm: ModuleType, device: str) -> None:
    model, inputs, _ = make(name, timm, device)
    vitkernels.fuse(model.eval())
    with torch.no_grad():
        program = torch.export.export(model, inputs)
        assert any("vitkernels" in str(node.target) for node in program.graph.nodes)
        close(program.module()(*inputs), model(*inputs))


def test_new_weights_are_seen(timm: ModuleType, device: str) -> None:
    model, inputs, _ = make("swin", timm, device)
    twin = copy.deepcopy(model.eval())
    vitkernels.fuse(twin)
    with torch.no_grad():
        twin(*inputs)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        twin.load_state_dict(model.state_dict())
        close(twin(*inputs), model(*inputs))


def _hook(conv: nn.Module) -> None:
    conv.register_forward_hook(lambda *_: None)


def _pre_hook(conv: nn.Module) -> None:
    conv.register_forward_pre_hook(lambda *_: None)


def _parametrise(conv: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(conv)


def _replace_forward(conv: nn.Module) -> None:
    conv.forward = partial(nn.Conv2d.forward, conv)  # type: ignore[method-assign]


def _prepare(conv: nn.Module) -> None:
    conv.qconfig = torch.ao.quantization.default_qconfig  # type: ignore[assignment]


@pytest.mark.parametrize("alter", [_hook, _pre_hook, _parametrise, _replace_forward, _prepare])
def test_altered_modules_are_left_alone(alter: Callable[[nn.Module], None], timm: ModuleType, device: str) -> None:
    model, inputs, _ = make("efficientnet", timm, device)
    alter(model[1].conv_dw)
    before = model.eval()(*inputs)
    report = vitkernels.fuse(model)
    assert [one.name for one in report.swapped] == ["0", "2"]
    assert "1" in {one.name for one in report.left}
    close(model(*inputs), before)


def test_an_error_in_fuse_leaves_the_model_as_it_was(
    timm: ModuleType, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = make("efficientnet", timm, device)
    last = model[2]

    def altered(module: nn.Module) -> None:
        if module is last:
            raise AttributeError("no such thing")

    monkeypatch.setattr(sys.modules[vitkernels.fuse.__module__], "_altered", altered)
    with pytest.raises(AttributeError):
        vitkernels.fuse(model)
    assert not any(map(vitkernels.is_fused, model.modules()))


@pytest.mark.parametrize("name", ["convmixer", "efficientnet", "maxvit", "mobilenet_v4", "torchvision_mobilenet"])
def test_norms_that_are_replaced_after_fusing_are_called(name: str, timm: ModuleType, device: str) -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x

    def replace_norms(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            for child, inside in module.named_children():
                if isinstance(inside, nn.BatchNorm2d):
                    setattr(module, child, Own())
        return model

    model, inputs, _ = make(name, timm, device)
    vitkernels.fuse(model.eval())
    with torch.no_grad():
        model(*inputs)
        got = replace_norms(model)(*inputs)
        vitkernels.unfuse(model)
        close(got, model(*inputs))


def test_training_on_one_value_per_channel_raises_as_torch_does(timm: ModuleType) -> None:
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv
    from timm.models.convmixer import Residual

    mixer = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8))
    for block in (DepthwiseSeparableConv(8, 8), Residual(mixer)):
        model = nn.Sequential(block).train()
        for _ in range(2):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                model(torch.randn(1, 8, 1, 1))
            vitkernels.fuse(model)


@pytest.mark.parametrize("name", ["swin", "convnext", "efficientnet", "transformers_beit"])
def test_fp64_goes_through_the_modules_own_forward(name: str, timm: ModuleType, device: str) -> None:
    model, inputs, _ = make(name, timm, device)
    model.double().eval()
    inputs = tuple(x.double() for x in inputs)
    with torch.no_grad():
        want = model(*inputs)
        vitkernels.fuse(model)
        assert torch.equal(model(*inputs), want)


def test_parameters_can_be_swapped_for_others_after_a_pass(timm: ModuleType, device: str) -> None:
    model, inputs, _ = make("swin", timm, device)
    vitkernels.fuse(model.eval())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.no_grad():
            model(*inputs)
            model.half()
            want = copy.deepcopy(model).float()(*inputs)
            torch.testing.assert_close(model(*(x.half() for x in inputs)).float(), want, rtol=0.01, atol=0.01)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
