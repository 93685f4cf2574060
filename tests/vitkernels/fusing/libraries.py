"""Models of other libraries whose modules `fuse` serves, small: what they are given, and the classes it swaps."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
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
