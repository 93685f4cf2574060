"""Models in another form than their published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.bench import build, command, predict
from vitbench.bench.options import BenchOptions, SweepOptions
from vitbench.bench.plan import Case
from vitbench.errors import InputError, Unsupported
from vitbench.models import create_model, foreign
from vitbench.models.drop_path import DropPath
from vitbench.results.row import Setup
from vitbench.variant import Variant

DINO = {
    "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "id2label": {"0": "cat", "1": "dog"},
}  # fmt: skip


def options(**given: Any) -> SweepOptions:
    asked = BenchOptions(**{"model": "cmt_ti", "resolution": "64", "batch": "1", "device": "cpu", **given})
    return command.options(command.plan(asked), asked)


@pytest.mark.parametrize("name", ["cmt_ti", "timm:test_vit", "torchvision:squeezenet1_1"])
def test_the_number_of_classes_is_the_outputs(name: str, timm: Any) -> None:
    model = create_model(name, resolution=(160, 160), variant=Variant(num_classes=7)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 160, 160)).shape == (1, 7)


def test_stochastic_depth_rises_to_the_last_block(timm: Any) -> None:
    asked = Variant(drop_path=0.3)
    for name, size in (("cmt_ti", 64), ("timm:test_vit", 160), ("transformers:convnext-tiny-224", 64)):
        model = create_model(name, resolution=(size, size), variant=asked)
        rates = [m.drop_prob for m in model.modules() if isinstance(getattr(m, "drop_prob", None), float)]
        assert rates == sorted(rates)
        assert max(rates) == pytest.approx(0.3)
    for name in ("resnet50", "timm:vgg11"):
        with pytest.raises(Unsupported, match="--drop-path: it has no stochastic depth"):
            create_model(name, resolution=(64, 64), variant=asked)
    assert all(m.drop_prob < 0.3 for m in create_model("cmt_ti", resolution=64).modules() if isinstance(m, DropPath))


def test_merged_branches_compute_the_same_with_fewer_parameters(timm: Any) -> None:
    """With the weights of the branches: the sweep's own, which are not those of initialisation."""
    case = Case("timm:repvgg_a0", "eager", "infer", "fp32", "nchw", (64, 64), 1, "cpu")
    plain, merged = (
        build.Workload(variant=Variant(reparam=wanted)).module(case, "eager", torch.float32) for wanted in (False, True)
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), plain(x), atol=1e-3, rtol=1e-3)
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in plain.parameters())
    counted = predict.count(case.model, case.resolution, Variant(reparam=True)).params_m
    assert counted == pytest.approx(sum(p.numel() for p in merged.parameters()) / 1e6)
    for name in ("resnet50", "timm:resnet18"):
        with pytest.raises(Unsupported, match="no branch of it can be merged"):
            create_model(name, variant=Variant(reparam=True))


def test_norms_that_leave_an_identity_of_their_name_are_merged(timm: Any) -> None:
    plain, merged = (create_model("timm:nextvit_small", variant=Variant(reparam=wanted)) for wanted in (False, True))
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in merged.named_modules()]
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (plain, merged)]
    assert norms[1] < norms[0]


def test_checkpointing_gives_the_same_gradients_from_fewer_saved_tensors(timm: Any) -> None:
    asked = Variant(checkpointing=True)
    x = torch.randn(1, 3, 160, 160)
    saved: list[int] = []
    gradients = []
    for variant in (Variant(), asked):
        torch.manual_seed(0)
        model = create_model("timm:test_vit", variant=variant).train()
        saved.append(0)

        def keep(tensor: Tensor) -> Tensor:
            saved[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(x)
        out.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    assert saved[1] < 0.7 * saved[0]
    assert create_model("transformers:vit-base-patch16-224", variant=asked).is_gradient_checkpointing
    for name in ("cmt_ti", "torchvision:resnet18"):
        with pytest.raises(Unsupported, match="it has no gradient checkpointing"):
            create_model(name, variant=asked)


def test_transformers_classes_are_made_by_name(tmp_path: Path, timm: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DINO))
    name = "transformers:Dinov2ForImageClassification"
    assert foreign.match("transformers:Dinov2ForImage*") == [name]
    assert foreign.entry(name).resolution == (224, 224)
    with torch.no_grad():
        model = create_model(name, resolution=28, variant=Variant(config=str(path))).eval()
        assert model(torch.randn(1, 3, 28, 28)).shape == (1, 2)  # the file's labels
        model = create_model(name, resolution=42, variant=Variant(config=str(path), num_classes=5)).eval()
        assert model(torch.randn(1, 3, 42, 42)).shape == (1, 5)
    with pytest.raises(InputError, match=r"model_type 'dinov2'; Swinv2ForImageClassification is a 'swinv2'"):
        create_model("transformers:Swinv2ForImageClassification", variant=Variant(config=str(path)))
    with pytest.raises(Unsupported, match="takes more than images"):
        create_model("transformers:Qwen3VLVisionModel")
    asked = BenchOptions(model=name, config=str(path), resolution="native,x2", batch="1", impl="eager", device="cpu")
    assert {case.resolution for case in command.plan(asked)} == {(28, 28), (64, 64)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_classes": 0}, "--num-classes 0 should be 1 or more"),
        ({"drop_path": 1.5, "mode": "train"}, "--drop-path 1.5 should be from 0 to below 1"),
        ({"drop_path": 0.1}, "--drop-path acts in training: add --mode train"),
        ({"checkpointing": True}, "--checkpointing acts in training"),
        ({"reparam": True, "mode": "train"}, "leave out --mode train"),
        ({"compile_mode": "max-autotun", "impl": "compile"}, "did you mean max-autotune"),
        ({"compile_mode": "default"}, "--compile-mode is for --impl compile or fused"),
        ({"config": "c.json"}, "--config belongs to one transformers: model, and cmt_ti is chosen"),
        (
            {"model": "transformers:beit-base-patch16-224", "config": "nosuch.json"},
            "nosuch.json cannot be read as JSON",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], told: str, timm: Any) -> None:
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        options(**given)


def test_every_option_is_in_the_row() -> None:
    checked = options(mode="train", impl="compile", num_classes=3, drop_path=0.1, compile_mode="default")
    assert checked.setup == Setup(
        graphs=False, num_classes=3, drop_path=0.1, reparam=False, checkpointing=False, compile_mode="default"
    )
