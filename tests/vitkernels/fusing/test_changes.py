"""Fused models that change after a first pass: other sizes, replicas, training after validation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import ModuleType
from typing import Any

import pytest
import torch
import vitkernels
from torch import Tensor, nn


def positioned(rel_pos: str, **settings: Any) -> nn.Module:
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    torch.manual_seed(0)
    model = VisionTransformerRelPos(
        (24, 48),
        8,
        num_classes=3,
        embed_dim=32,
        depth=1,
        num_heads=2,
        rel_pos_type=rel_pos,
        init_values=1.0,
        **settings,
    )
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter)
    return model.eval()


def windowed(version: int = 1) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    torch.manual_seed(0)
    kind = {1: SwinTransformer, 2: SwinTransformerV2}[version]
    model = kind((32, 64), 4, num_classes=3, embed_dim=32, depths=(2,), num_heads=(2,), window_size=4)
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name:
            nn.init.normal_(parameter)
    return model.eval()


MODELS = {
    "mlp": lambda: positioned("mlp"),
    "table": lambda: positioned("bias"),
    "table with a class token": lambda: positioned("bias", class_token=True, rel_pos_dim=None),
    "windows": windowed,
    "windows by cosines": lambda: windowed(2),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_other_input_sizes_after_a_pass(name: str, frozen: bool, timm: ModuleType) -> None:
    plain = MODELS[name]()
    fused = copy.deepcopy(plain)
    assert vitkernels.fuse(fused).swapped
    if frozen:
        vitkernels.freeze(fused)
    sizes = [(32, 64), (64, 32), (64, 64)] if name.startswith("windows") else [(24, 48), (48, 24), (48, 48)]
    with torch.inference_mode():
        for size in sizes:
            for model in (plain, fused):
                model.set_input_size(size)
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(fused(x), plain(x), rtol=1e-3, atol=1e-4)


def convit() -> nn.Module:
    from timm.models.convit import ConVit

    torch.manual_seed(0)
    return ConVit(32, 8, num_classes=3, embed_dim=32, depth=2, num_heads=2, local_up_to_layer=1)


def replica(network: nn.Module) -> Any:
    """What nn.DataParallel runs on each device: the same modules, whose parameters are views by attribute alone."""
    copies = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, twin in copies.items():
        twin._former_parameters = OrderedDict()
        for name, child in module._modules.items():
            setattr(twin, name, None if child is None else copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, parameter.view_as(parameter))
    return copies[network]


@pytest.mark.parametrize("make", [convit, windowed])
def test_every_parameter_of_a_replica_gets_its_gradient(make: Any, timm: ModuleType) -> None:
    fused = make().train()
    vitkernels.fuse(fused)
    vitkernels.freeze(fused)  # which replicas are not
    x = torch.randn(2, 3, 32, 64 if make is windowed else 32)
    found = []
    for model in (fused, replica(fused)):
        fused.zero_grad()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        found.append({name: p.grad for name, p in fused.named_parameters()})
    for name, want in found[0].items():
        assert want is not None, name
        torch.testing.assert_close(found[1][name], want, msg=name)


@pytest.mark.parametrize("before", ["fusing", "training"])
def test_training_after_validation_in_inference_mode(before: str, timm: ModuleType) -> None:
    plain = convit()
    x = torch.randn(2, 3, 32, 32)

    def validate() -> Tensor:
        with torch.inference_mode():
            return plain.eval()(x).clone()

    want = validate() if before == "fusing" else None
    vitkernels.fuse(plain)
    vitkernels.freeze(plain)
    got = validate()
    if want is not None:
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    plain.train()(x).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
