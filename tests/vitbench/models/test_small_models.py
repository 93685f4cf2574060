"""What holds for every family, at sizes that take seconds: implementations, layouts, dtypes, training.

A family joins by one line in SMALL.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from vitbench import ops
from vitbench.catalog import Resolution
from vitbench.measure import flops
from vitbench.models import coatnet, convit, tnt, tutorial
from vitbench.models.coatnet_blocks import MBConvConfig
from vitbench.models.drop_path import DropPath
from vitbench.ops import EAGER, FLEX, SDPA, Ops

CLASSES = 10
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

SMALL = {
    "convit": lambda ops, resolution: convit.ConViT(ops, CONVIT, resolution, CLASSES),
    "tnt": lambda ops, resolution: tnt.TNT(ops, TNT, resolution, CLASSES),
    "tnt_legacy": lambda ops, resolution: tnt.TNT(ops, dataclasses.replace(TNT, legacy=True), resolution, CLASSES),
    "coatnet": lambda ops, resolution: coatnet.CoAtNet(ops, COATNET, resolution, CLASSES),
    "coatnet_rw": lambda ops, resolution: coatnet.CoAtNet(ops, COATNET_RW, resolution, CLASSES),
    "vit_rel": lambda ops, resolution: coatnet.CoAtNet(ops, VIT_REL, resolution, CLASSES),
    "tutorial_coatnet": lambda ops, resolution: coatnet.CoAtNet(ops, TUTORIAL_COATNET, resolution, CLASSES),
    "tutorial_vit": lambda ops, resolution: tutorial.TutorialViT(ops, TUTORIAL_VIT, resolution, CLASSES),
}
RESOLUTION = (64, 96)


def build(kind: str, ops: Ops = EAGER, resolution: Resolution = RESOLUTION) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = SMALL[kind](ops, resolution)
    return model


def small(kind: str, ops: Ops = EAGER) -> tuple[nn.Module, Tensor]:
    """A model in evaluation whose parameters and statistics are none of 0 and 1, and images."""
    model = build(kind, ops)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model.eval(), torch.randn(2, 3, *RESOLUTION)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", SMALL)
def test_sdpa_channels_last_and_deepcopy_agree_with_eager(kind: str) -> None:
    model, image = small(kind)
    expected = model(image)
    assert relative_error(copy.deepcopy(model)(image), expected) == 0
    assert relative_error(small(kind, SDPA)[0](image), expected) < 1e-5
    nhwc = model.to(memory_format=torch.channels_last)
    assert relative_error(nhwc(image.to(memory_format=torch.channels_last)), expected) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_agrees_with_eager_and_refuses_to_train_on_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uncompiled, FlexAttention computes the same with plain operators: to compile takes seconds for every
    # shape, and is what test_ops.py does.
    monkeypatch.setattr(ops, "_compiled_flex", lambda: flex_attention)
    model, image = small(kind, FLEX)
    with torch.inference_mode():
        actual, exact = model(image), small(kind)[0].double()(image.double())
        own = relative_error(small(kind)[0](image).double(), exact)
    assert relative_error(actual.double(), exact) <= max(2 * own, 1e-5)
    with pytest.raises(NotImplementedError, match="no backward pass on the CPU: train with eager or sdpa"):
        model.train()(image)


@pytest.mark.parametrize("kind", SMALL)
def test_low_precision_costs_sdpa_no_more_than_twice_what_it_costs_eager(kind: str) -> None:
    model, image = small(kind)
    exact = copy.deepcopy(model).double()(image.double())
    low = [small(kind, ops)[0].to(torch.bfloat16)(image.to(torch.bfloat16)) for ops in (EAGER, SDPA)]
    assert all(output.dtype is torch.bfloat16 for output in low)
    own, error = (relative_error(output.double(), exact) for output in low)
    assert own < 0.1
    assert error <= 2 * own


@pytest.mark.parametrize("kind", ["convit", "coatnet"])
def test_compiles_without_a_graph_break(kind: str) -> None:
    model, image = small(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(image), model(image)) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_trains_on_fake_tensors_in_another_default_dtype(kind: str) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            for bundle in (EAGER, FLEX):
                model = SMALL[kind](bundle, RESOLUTION)
                logits = model(torch.empty(2, 3, *RESOLUTION))
                logits.sum().backward()
                assert (logits.dtype, logits.shape) == (torch.bfloat16, (2, CLASSES))
                assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("kind", SMALL)
def test_every_operator_is_counted(kind: str) -> None:
    assert flops.count(build(kind), RESOLUTION).uncounted_ops == ()


@pytest.mark.parametrize("kind", SMALL)
def test_other_images_than_it_was_built_for_are_refused_by_both_sizes(kind: str) -> None:
    model = build(kind)
    with pytest.raises(ValueError, match=r"\[1, 3, 96, 64\] given to a model built for 64x96"):
        model(torch.zeros(1, 3, 96, 64))
    step = 16 if "coatnet" not in kind else 32
    for resolution in ((64, 64 + step // 2), (0, 64)):
        named = "x".join(map(str, resolution))
        with pytest.raises(ValueError, match=rf"{named} is not a positive multiple of {step} px"):
            build(kind, resolution=resolution)


@pytest.mark.parametrize("kind", ["convit", "tnt", "coatnet"])
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


def digits(side: int, count: int) -> tuple[Tensor, Tensor]:
    """The first of scikit-learn's 8x8 digits, fp64 [count, 3, side, side] from -1 to 1, and their labels [count]."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    grey = torch.from_numpy(images[:count]).view(-1, 1, 8, 8) / 8 - 1
    enlarged = F.interpolate(grey, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1)
    return enlarged, torch.from_numpy(labels[:count])


def losses(kind: str, bundle: Ops, steps: int = 20) -> list[float]:
    """The curve of a few steps in fp64, where two right implementations cannot drift apart."""
    model = build(kind, bundle, (64, 64)).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    torch.manual_seed(1)  # of drop-path, the same for every implementation
    curve = []
    images, labels = digits(64, 16)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("kind", ["convit", "tnt", "coatnet", "tutorial_coatnet", "tutorial_vit"])
def test_loss_falls_on_digits_alike_in_eager_and_sdpa(kind: str) -> None:
    eager, sdpa = losses(kind, EAGER), losses(kind, SDPA)
    assert sum(eager[-4:]) < 0.9 * sum(eager[:4])
    assert sdpa == pytest.approx(eager, rel=1e-6)


def test_every_choice_of_the_convolutional_block_is_exercised() -> None:
    chosen = [config.conv for config in (COATNET, COATNET_RW, TUTORIAL_COATNET)]
    for field in dataclasses.fields(MBConvConfig):
        if field.name not in ("squeeze_ratio", "expansion", "squeeze_first"):
            assert len({getattr(config, field.name) for config in chosen}) > 1, field.name
