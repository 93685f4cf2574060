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

from .libraries import MODELS, Made, make


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest, timm: ModuleType, device: str) -> Made:
    return make(request.param, timm, device)


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
