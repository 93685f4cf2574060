"""What the harness does with each form of output: train on it, compare it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.bench.build import Workload
from vitbench.bench.plan import Case
from vitbench.catalog import Resolution
from vitbench.errors import Unsupported
from vitbench.models import MODELS, ModelSpec, Preprocessing, create_model, outputs
from vitbench.models.detection import Detections
from vitbench.models.detr import DETR, DETRConfig
from vitbench.models.resnet import ResNetConfig
from vitbench.ops.bundle import Ops
from vitbench.verify.outcome import Outcome, relative_error, run, targets

pytestmark = pytest.mark.fast


def detections(batch: int, queries: int, classes: int, layers: int = 1) -> Detections:
    def one() -> Detections:
        return {"pred_logits": torch.randn(batch, queries, classes), "pred_boxes": torch.rand(batch, queries, 4)}

    return {**one(), "aux_outputs": [one() for _ in range(layers - 1)]} if layers > 1 else one()


def test_logits_are_trained_by_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5), torch.tensor([4, 0, 2])
    assert outputs.loss(logits, labels) == F.cross_entropy(logits, labels)
    assert outputs.classes(logits) == 5


def test_one_logit_is_trained_by_binary_cross_entropy() -> None:
    logits = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    loss = outputs.loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(2)) + math.log1p(math.exp(1))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad.abs() > 0.1).all(), "cross entropy over one class would have no gradient"
    assert outputs.classes(logits) == 2


def test_detections_are_trained_layer_by_layer_towards_one_label_and_one_box() -> None:
    torch.manual_seed(0)
    found, labels = detections(2, 3, 5, layers=3), torch.tensor([4, 1])
    expected = 0.0
    for layer in (found, *found["aux_outputs"]):
        for image in range(2):
            for query in range(3):
                expected -= layer["pred_logits"][image, query].log_softmax(0)[labels[image]].item() / 6
                expected += 5 * sum((x - 0.25) ** 2 for x in layer["pred_boxes"][image, query].tolist()) / 6
    assert outputs.loss(found, labels).item() == pytest.approx(expected, rel=1e-5)
    assert outputs.classes(found) == 5


def test_low_precision_is_widened_and_double_kept() -> None:
    labels = torch.tensor([1])
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        assert outputs.loss(torch.randn(1, 4, dtype=dtype), labels).dtype is wanted


def test_every_tensor_of_an_output_is_compared() -> None:
    torch.manual_seed(0)
    found = detections(2, 3, 5, layers=2)
    assert [tuple(t.shape) for t in outputs.tensors(found)] == [(2, 3, 5), (2, 3, 4)] * 2
    want = Outcome(found, {})
    assert relative_error(want, want) == 0
    boxes = found["aux_outputs"][0]["pred_boxes"]
    wrong: Detections = {**found, "aux_outputs": [{**found["aux_outputs"][0], "pred_boxes": 1.1 * boxes}]}
    assert relative_error(Outcome(wrong, {}), want) == pytest.approx(0.1, rel=1e-4)
    broken: Detections = {**found, "pred_boxes": torch.full_like(boxes, math.nan)}
    assert not Outcome(broken, {}).finite()
    assert relative_error(Outcome(broken, {}), want) == math.inf


def test_a_lone_logit_near_zero_is_not_held_against_itself() -> None:
    near, wanted = torch.tensor([[1e-4], [3.0]]), torch.tensor([[2e-4], [3.0]])
    assert relative_error(Outcome(near[:1], {}), Outcome(wanted[:1], {})) == pytest.approx(1e-4)
    assert relative_error(Outcome(near, {}), Outcome(wanted, {})) == pytest.approx(1e-4 / 3, rel=1e-3)
    wide = torch.tensor([[1e-4, 0.0]])
    assert relative_error(Outcome(wide, {}), Outcome(2 * wide, {})) == pytest.approx(0.5)


def test_other_outputs_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="not of str"):
        list(outputs.tensors({"logits": torch.ones(1), "name": "x"}))


def build_small(ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    backbone = ResNetConfig((1, 1, 1, 1), bottleneck=True)
    return DETR(ops, DETRConfig(backbone, 16, 2, 1, 2, hidden=16, queries=3), num_classes)


@pytest.fixture
def small_detector(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(MODELS, "detr_resnet50", ModelSpec(build_small, (64, 96), Preprocessing(), num_classes=4))
    return "detr_resnet50"


def case(model: str, mode: str) -> Case:
    return Case(model, "sdpa", mode, "fp32", "nchw", (64, 96), 2, "cpu")


def test_a_detector_is_built_with_its_own_classes_and_verified_in_both_modes(small_detector: str) -> None:
    workload = Workload()
    torch.manual_seed(0)
    for mode in ("infer", "train"):
        outcomes = []
        for impl in ("eager", "sdpa"):
            model = workload.module(case(small_detector, mode), impl, torch.float32)
            outcomes.append(run(model, workload.input(case(small_detector, mode), torch.float32), mode))
        shapes = [tuple(t.shape) for t in outputs.tensors(outcomes[0].output)]
        assert shapes == [(2, 3, 5), (2, 3, 4)] * 2
        assert relative_error(outcomes[1], outcomes[0]) < 1e-4
        assert bool(outcomes[0].gradients) == (mode == "train")
    assert outcomes[0].gradients
    assert all(not tensor.requires_grad for tensor in outputs.tensors(outcomes[0].output)), "no graph is kept"


def test_frozen_parameters_stay_frozen_through_both_modes(small_detector: str) -> None:
    workload = Workload()
    for mode in ("infer", "train"):
        module = workload.module(case(small_detector, mode), "eager", torch.float32)
    frozen = {name.split(".")[3] for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    gradients = run(module, torch.randn(2, 3, 64, 96), "train").gradients
    assert gradients
    assert not any(name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1")) for name in gradients)


def test_classes_can_still_be_asked_for() -> None:
    with torch.device("meta"):
        assert create_model("efficient_vit_b0", num_classes=7).state_dict()["mlp_head.2.weight"].shape[0] == 7
        assert create_model("resnet18").state_dict()["fc.weight"].shape[0] == 1000


def test_verification_labels_are_spread_over_the_classes() -> None:
    labels = [targets(4, output) for output in (torch.zeros(4, 1000), torch.zeros(4, 1), detections(4, 3, 5))]
    assert [label.tolist() for label in labels] == [[0, 37, 74, 111], [0, 1, 0, 1], [0, 2, 4, 1]]
    assert all(isinstance(label, Tensor) for label in labels)


def test_features_are_nothing_to_train_on() -> None:
    with pytest.raises(Unsupported, match=r"gives \[batch, 5, 7\], where logits are \[batch, classes\]"):
        outputs.loss(torch.zeros(2, 5, 7), torch.zeros(2, dtype=torch.long))
