"""What holds for every family, at sizes that take seconds: implementations, layouts, dtypes, training.

A family joins by one line in SMALL.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as flex

from vitbench.catalog import Resolution
from vitbench.errors import Unsupported
from vitbench.measure import flops
from vitbench.models import (
    cmt,
    coatnet,
    convit,
    convmixer,
    detr,
    efficient_vit,
    efficientnet,
    inputs,
    outputs,
    resnet,
    tnt,
    tutorial,
    vit,
    yolos,
)
from vitbench.models.coatnet_blocks import MBConvConfig
from vitbench.models.drop_path import DropPath
from vitbench.models.weights import enliven
from vitbench.ops import bundle as ops
from vitbench.ops.bundle import EAGER, FLEX, SDPA, Ops
from vitbench.verify.outcome import Outcome, dropout_modules, relative_error

CLASSES = 10
VIT = vit.ViTConfig(vit.Size(48, 2, 3), 16, 32, dropout=0.1)
DEIT = vit.ViTConfig(vit.Size(48, 3, 3), 16, 32, distilled=True, drop_path=0.1)
HYBRID = vit.ViTConfig(vit.Size(48, 2, 3), 1, 64, backbone=(1, 2), dropout=0.1)
CMT = cmt.CMTConfig(8, (16, 16, 32, 32), (1, 2, 1, 1), mlp_ratio=2, dropout=0.1, drop_path=0.1)
CONVIT = convit.ConViTConfig(heads=4, head_dim=8, gated_blocks=2, plain_blocks=1)
TNT = tnt.TNTConfig(width=32, heads=4, word_width=8, word_heads=2, depth=2)
COATNET = dataclasses.replace(
    coatnet.CONFIGS["coatnet_0"], widths=(16, 32, 32, 64), depths=(1, 2, 2, 1), stem=(8, 16), drop_path=0.2
)
COATNET_RW = dataclasses.replace(
    coatnet.CONFIGS["coatnet_3_rw_224"], widths=(16, 32, 32, 64), depths=(1, 2, 2, 1), stem=(8, 16)
)
VIT_REL = dataclasses.replace(coatnet.CONFIGS["coatnet_0_vit_rel"], widths=(64,), depths=(2,))
TUTORIAL_COATNET = dataclasses.replace(
    tutorial.COATNET_CONFIGS["tutorial_coatnet_0"], widths=(16, 32, 32, 64), depths=(1, 2, 2, 1), stem=(8, 16)
)
TUTORIAL_VIT = tutorial.TutorialViTConfig(width=32, heads=4, depth=2)
CONVMIXER = convmixer.ConvMixerConfig(24, 2, kernel=5, patch=4)
EFFICIENTNET = efficientnet.EfficientNetConfig(
    0.25, 1.0, dropout=0.2, stages=(efficientnet.Stage(1, 3, 1, 1, 16), efficientnet.Stage(2, 5, 2, 6, 24))
)
BRANCH = efficient_vit.Branch(None, 320, 4, patch=4, width=12, depth=1, rows=32)
LARGE = efficient_vit.Branch(1, 8, 2, patch=8, width=16, depth=2, rows=32)
HEADS = efficient_vit.Heads(heads=2, head_width=4, hidden=12)
EFFICIENT_VIT = efficient_vit.EfficientViTConfig(BRANCH, HEADS, EFFICIENTNET, trained_blocks=2)
CROSS_VIT = efficient_vit.CrossViTConfig(BRANCH, LARGE, HEADS, EFFICIENTNET, layers=1, rounds=1)
RESNET = resnet.ResNetConfig((1, 1, 1, 1), bottleneck=False)
DETR = detr.DETRConfig(RESNET, 16, 2, encoder_layers=1, decoder_layers=2, hidden=32, queries=3)
YOLOS = yolos.YOLOSConfig(vit.Size(24, 2, 2), (48, 32), middle=True, resolution=(64, 96), tokens=3)

SMALL: dict[str, Callable[[Ops, Resolution], nn.Module]] = {
    "vit": lambda ops, resolution: vit.VisionTransformer(ops, VIT, resolution, CLASSES),
    "deit": lambda ops, resolution: vit.VisionTransformer(ops, DEIT, resolution, CLASSES),
    "hybrid": lambda ops, resolution: vit.VisionTransformer(ops, HYBRID, resolution, CLASSES),
    "cmt": lambda ops, resolution: cmt.CMT(CMT, ops, resolution, CLASSES),
    "convit": lambda ops, resolution: convit.ConViT(ops, CONVIT, resolution, CLASSES),
    "tnt": lambda ops, resolution: tnt.TNT(ops, TNT, resolution, CLASSES),
    "tnt_legacy": lambda ops, resolution: tnt.TNT(ops, dataclasses.replace(TNT, legacy=True), resolution, CLASSES),
    "coatnet": lambda ops, resolution: coatnet.CoAtNet(ops, COATNET, resolution, CLASSES),
    "coatnet_rw": lambda ops, resolution: coatnet.CoAtNet(ops, COATNET_RW, resolution, CLASSES),
    "vit_rel": lambda ops, resolution: coatnet.CoAtNet(ops, VIT_REL, resolution, CLASSES),
    "tutorial_coatnet": lambda ops, resolution: coatnet.CoAtNet(ops, TUTORIAL_COATNET, resolution, CLASSES),
    "tutorial_vit": lambda ops, resolution: tutorial.TutorialViT(ops, TUTORIAL_VIT, resolution, CLASSES),
    "efficient_vit": lambda ops, resolution: efficient_vit.EfficientViT(ops, EFFICIENT_VIT, resolution, CLASSES),
    "conv_cross_vit": lambda ops, resolution: efficient_vit.ConvCrossViT(ops, CROSS_VIT, resolution, CLASSES),
    "detr": lambda ops, _: detr.DETR(ops, DETR, CLASSES - 1),
    "yolos": lambda ops, _: yolos.YOLOS(ops, YOLOS, CLASSES - 1),
    "convmixer": lambda ops, _: convmixer.ConvMixer(ops, CONVMIXER, CLASSES),
    "efficientnet": lambda ops, _: efficientnet.EfficientNet(ops, EFFICIENTNET, CLASSES),
    "resnet": lambda ops, _: resnet.ResNet(RESNET, CLASSES),
}
ATTENTIVE = [kind for kind in SMALL if kind not in ("convmixer", "efficientnet", "resnet")]
#: Without any randomness in training, as their authors have them.
QUIET = {"coatnet_rw", "tutorial_coatnet", "tutorial_vit", "yolos", "convmixer", "resnet"}
FIXED = ["convit", "tnt", "tnt_legacy", "coatnet", "coatnet_rw", "vit_rel", "tutorial_coatnet", "tutorial_vit"]
RESOLUTION = (64, 96)
#: Whose parts need images of 64 pixels to have more than one cell.
WIDE = {"cmt", "convit", "tnt", "tnt_legacy", "coatnet", "coatnet_rw", "tutorial_coatnet"}


def build(kind: str, ops: Ops = EAGER, resolution: Resolution = RESOLUTION) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = SMALL[kind](ops, resolution)
    return model


def small(kind: str, ops: Ops = EAGER) -> tuple[nn.Module, Tensor]:
    """A model in evaluation none of whose parameters and statistics are 0 or 1, and images."""
    model = build(kind, ops)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim != 4:  # logits of attention far from each other
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    enliven(model, inputs.noise(RESOLUTION, 2))
    return model.eval(), inputs.noise(RESOLUTION, 2, seed=1)


def error(actual: outputs.Output, expected: outputs.Output) -> float:
    return relative_error(Outcome(actual, {}), Outcome(expected, {}))


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_sdpa_channels_last_and_deepcopy_agree_with_eager(kind: str) -> None:
    model, image = small(kind)
    expected = model(image)
    assert error(copy.deepcopy(model)(image), expected) == 0
    assert error(small(kind, SDPA)[0](image), expected) < 1e-5
    nhwc = model.to(memory_format=torch.channels_last)
    assert error(nhwc(image.to(memory_format=torch.channels_last)), expected) < 1e-5
    first = next(outputs.tensors(expected))
    assert error(first[:1], first[1:]) > 1e-3  # another image is another output


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_flex_agrees_with_eager_and_refuses_to_train_on_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uncompiled, FlexAttention computes the same with plain operators: to compile takes seconds for every
    # shape, and is what ops/test_bundle.py does. Even then torch would trace it anew for every shape.
    monkeypatch.setattr(ops, "_compiled_flex", lambda: flex.flex_attention)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    model, image = small(kind, FLEX)
    with torch.inference_mode():
        actual, exact = model(image), small(kind)[0].double()(image.double())
        own = error(small(kind)[0](image), exact)
    assert error(actual, exact) <= max(2 * own, 1e-5)
    with pytest.raises(Unsupported, match="train with eager or sdpa"):
        model.train()(image)


@pytest.mark.parametrize("kind", ATTENTIVE)
@torch.no_grad()
def test_low_precision_costs_sdpa_no_more_than_twice_what_it_costs_eager(kind: str) -> None:
    model, image = small(kind)
    exact = copy.deepcopy(model).double()(image.double())
    low = [small(kind, ops)[0].to(torch.bfloat16)(image.to(torch.bfloat16)) for ops in (EAGER, SDPA)]
    own, of_sdpa = (error(output, exact) for output in low)
    assert own < 0.1
    assert of_sdpa <= 2 * own


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_bf16_stays_bf16_and_near(kind: str) -> None:
    model, image = small(kind)
    expected = model(image)
    actual = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert {tensor.dtype for tensor in outputs.tensors(actual)} == {torch.bfloat16}
    assert error(actual, expected) < 0.1


@pytest.mark.parametrize("kind", ["cmt", "convit", "coatnet", "convmixer", "conv_cross_vit", "detr", "yolos"])
def test_compiles_without_a_graph_break(kind: str) -> None:
    model, image = small(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert error(compiled(image), model(image)) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_trains_on_fake_tensors_in_another_default_dtype(kind: str) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            for bundle in (EAGER, FLEX) if kind in ATTENTIVE and kind != "detr" else (EAGER,):
                model = SMALL[kind](bundle, RESOLUTION)
                output = model(torch.empty(2, 3, *RESOLUTION))
                outputs.loss(output, torch.zeros(2, dtype=torch.long)).backward()
                assert {tensor.dtype for tensor in outputs.tensors(output)} == {torch.bfloat16}
                assert all(p.grad is not None and p.grad.shape == p.shape for p in trained(model).values())
    finally:
        torch.set_default_dtype(default)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that a step must reach: those of an EfficientNet inside another model are partly unused."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and "efficient_net" not in name}


@pytest.mark.parametrize("kind", SMALL)
def test_every_operator_is_counted(kind: str) -> None:
    assert flops.count(build(kind), RESOLUTION).uncounted_ops == ()


@pytest.mark.parametrize("kind", FIXED)
def test_other_images_than_it_was_built_for_are_refused_by_both_sizes(kind: str) -> None:
    model = build(kind)
    with pytest.raises(ValueError, match=r"\[1, 3, 96, 64\] given to a model built for 64x96"):
        model(torch.zeros(1, 3, 96, 64))
    step = 16 if "coatnet" not in kind else 32
    for resolution in ((64, 64 + step // 2), (0, 64)):
        named = "x".join(map(str, resolution))
        with pytest.raises(ValueError, match=rf"{named} is not a positive multiple of {step} px"):
            build(kind, resolution=resolution)


@pytest.mark.parametrize("kind", ["deit", "cmt", "convit", "tnt", "coatnet"])
def test_drop_path_rises_over_the_blocks_and_acts_in_training_only(kind: str) -> None:
    model, image = small(kind)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    last = COATNET.drop_path if kind == "coatnet" else 0.1
    assert rates == pytest.approx([last * i / (len(rates) - 1) for i in range(len(rates))])
    assert torch.equal(model(image), model(image))
    many = image.repeat(16, 1, 1, 1)  # of equal images, some lose a branch
    for module in model.modules():
        if isinstance(module, DropPath):
            module.train()
    assert len(model(many)[::2].round(decimals=3).unique(dim=0)) > 1


@pytest.mark.parametrize("kind", SMALL)
def test_a_training_step_with_its_randomness_has_finite_gradients(kind: str) -> None:
    model = build(kind).train()
    random = dropout_modules(model)
    assert bool(random) == (kind not in QUIET)
    images, labels = inputs.noise(RESOLUTION, 4), torch.tensor([0, 3, 9, 1])
    first, second = (outputs.loss(model(images), labels) for _ in range(2))
    assert torch.equal(first, second) == (not random)
    first.backward()
    assert all(p.grad is not None for p in trained(model).values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def digits(side: int, count: int) -> tuple[Tensor, Tensor]:
    """The first of scikit-learn's 8x8 digits, fp64 [count, 3, side, side] from -1 to 1, and their labels [count]."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    grey = torch.from_numpy(images[:count]).view(-1, 1, 8, 8) / 8 - 1
    enlarged = F.interpolate(grey, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1)
    return enlarged, torch.from_numpy(labels[:count])


def losses(kind: str, bundle: Ops, steps: int) -> list[float]:
    """The curve of a few steps in fp64, where two right implementations cannot drift apart."""
    side = 64 if kind in WIDE else 32
    model = build(kind, bundle, (side, side)).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    torch.manual_seed(1)  # of drop-path and dropout, the same for every implementation
    curve = []
    images, labels = digits(side, 8)
    for _ in range(steps):
        loss = outputs.loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("kind", SMALL)
def test_loss_falls_on_digits_alike_in_eager_and_sdpa(kind: str) -> None:
    eager = losses(kind, EAGER, 20)
    assert sum(eager[-4:]) < 0.9 * sum(eager[:4])
    if kind in ATTENTIVE:
        # Each loss after the first depends on the gradients of every parameter before.
        assert losses(kind, SDPA, 6) == pytest.approx(eager[:6], rel=1e-6)


def test_every_choice_of_the_convolutional_block_is_exercised() -> None:
    chosen = [config.conv for config in (COATNET, COATNET_RW, TUTORIAL_COATNET)]
    for field in dataclasses.fields(MBConvConfig):
        if field.name not in ("squeeze_ratio", "expansion", "squeeze_first"):
            assert len({getattr(config, field.name) for config in chosen}) > 1, field.name
