"""ConvMixer, EfficientNet, Efficient ViT, DETR and YOLOS in every way the harness runs them, and learning digits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitbench import objective, verify
from vitbench.models import convmixer, detr, efficient_vit, efficientnet, yolos
from vitbench.models.efficientnet import EfficientNetConfig, Stage
from vitbench.models.resnet import ResNetConfig
from vitbench.models.vit import Size
from vitbench.ops import EAGER, SDPA, Ops
from vitbench.verify import Outcome

SIZE = (32, 48)
BACKBONE = EfficientNetConfig(0.25, 1.0, dropout=0.2, stages=(Stage(1, 3, 1, 1, 16), Stage(2, 5, 2, 6, 24)))
BRANCH = efficient_vit.Branch(None, 320, 4, patch=4, width=12, depth=1, rows=8)
LARGE = efficient_vit.Branch(1, 8, 2, patch=8, width=16, depth=2, rows=8)
HEADS = efficient_vit.Heads(heads=2, head_width=4, hidden=12)
EFFICIENT = efficient_vit.EfficientViTConfig(BRANCH, HEADS, BACKBONE, trained_blocks=2)
CROSS = efficient_vit.CrossViTConfig(BRANCH, LARGE, HEADS, BACKBONE, layers=1, rounds=1)
DETR = detr.DETRConfig(
    ResNetConfig((1, 1, 1, 1), True), 16, 2, encoder_layers=1, decoder_layers=2, hidden=32, queries=3
)
YOLOS = yolos.YOLOSConfig(Size(24, 2, 2), (48, 32), middle=True, resolution=SIZE, tokens=3)

#: A small network of each family with 10 classes, for images of SIZE or 32 x 32.
SMALL: dict[str, Callable[[Ops], nn.Module]] = {
    "convmixer": lambda ops: convmixer.ConvMixer(ops, convmixer.ConvMixerConfig(24, 2, kernel=5, patch=4), 10),
    "efficientnet": lambda ops: efficientnet.EfficientNet(ops, BACKBONE, 10),
    "efficient_vit": lambda ops: efficient_vit.EfficientViT(ops, EFFICIENT, SIZE, 10),
    "conv_cross_vit": lambda ops: efficient_vit.ConvCrossViT(ops, CROSS, SIZE, 10),
    "detr": lambda ops: detr.DETR(ops, DETR, 9),
    "yolos": lambda ops: yolos.YOLOS(ops, YOLOS, 9),
}


def small(family: str, ops: Ops = EAGER) -> nn.Module:
    """In evaluation, with the batch statistics of noise, so that the image reaches the output."""
    torch.manual_seed(0)
    model = SMALL[family](ops)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None
    with torch.no_grad():
        model(torch.randn(8, 3, *SIZE))
    for module in norms:
        module.momentum = 0.1
    return model.eval()


def error(actual: objective.Output, expected: objective.Output) -> float:
    return verify.relative_error(Outcome(actual, {}), Outcome(expected, {}))


@pytest.mark.parametrize("family", SMALL)
def test_implementations_layouts_and_copies_agree(family: str) -> None:
    model, image = small(family), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = model(image)
        assert error(copy.deepcopy(model)(image), expected) == 0
        assert error(small(family, SDPA)(image), expected) < 1e-5
        assert error(torch.compile(model, backend="aot_eager", fullgraph=True)(image), expected) < 1e-5
        nhwc = model.to(memory_format=torch.channels_last)
        assert error(nhwc(image.to(memory_format=torch.channels_last)), expected) < 1e-5


@pytest.mark.parametrize("family", SMALL)
def test_bf16_stays_bf16_and_near(family: str) -> None:
    model, image = small(family), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = model(image)
        actual = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert {tensor.dtype for tensor in objective.tensors(actual)} == {torch.bfloat16}
    assert error(actual, expected) < 0.05


@pytest.mark.parametrize("family", SMALL)
def test_trains_on_fake_tensors_in_another_default_dtype(family: str) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = SMALL[family](EAGER).train()
            output = model(torch.empty(2, 3, *SIZE))
            objective.loss(output, torch.zeros(2, dtype=torch.long)).backward()
    finally:
        torch.set_default_dtype(default)
    assert {tensor.dtype for tensor in objective.tensors(output)} == {torch.bfloat16}
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", SMALL)
def test_a_training_step_with_its_randomness_has_finite_gradients(family: str) -> None:
    torch.manual_seed(0)
    model = SMALL[family](EAGER).train()
    random = verify.dropout_modules(model)
    assert bool(random) == (family not in ("convmixer", "yolos")), "those two have neither dropout nor drop-path"
    images, labels = torch.randn(4, 3, *SIZE), torch.tensor([0, 3, 9, 1])
    first, second = (objective.loss(model(images), labels) for _ in range(2))
    assert torch.equal(first, second) == (not random)
    first.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "efficient_net" not in name]
    assert all(p.grad is not None for p in trained)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """32 handwritten digits as [32, 3, 32, 32], and their labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    images = torch.tensor(data.images[:32], dtype=torch.float32)[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return images.contiguous(), torch.tensor(data.target[:32])


def learn(family: str, ops: Ops, images: Tensor, labels: Tensor) -> list[float]:
    torch.manual_seed(0)
    model = SMALL[family](ops).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve = []
    for _ in range(20):
        loss = objective.loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("family", SMALL)
def test_digits_are_learned_alike_by_every_implementation(family: str, digits: tuple[Tensor, Tensor]) -> None:
    eager, sdpa = (learn(family, ops, *digits) for ops in (EAGER, SDPA))
    assert sum(eager[-5:]) / 5 < 0.9 * sum(eager[:5]) / 5
    assert sdpa == pytest.approx(eager, rel=1e-3)
