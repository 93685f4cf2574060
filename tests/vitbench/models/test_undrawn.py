"""A model whose weights are loaded is the same whether it drew others before or not."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import init

from vitbench.bench.build import Workload
from vitbench.bench.plan import Case
from vitbench.models import create_model
from vitbench.models.undrawn import Undrawn


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("cmt_ti", 64),
        ("vit_tiny_patch16_224", 64),
        ("convit_tiny", 64),
        ("coatnet_0", 64),
        ("timm:swin_s3_tiny_224", 224),
    ],
)
def test_what_a_sweep_builds_is_the_model_with_its_weights(
    name: str, side: int, request: pytest.FixtureRequest
) -> None:
    if name.startswith("timm:"):
        assert isinstance(request.getfixturevalue("timm"), ModuleType)
    workload, resolution = Workload(), (side, side)
    case = Case(name, "eager", "train", "fp32", "nchw", resolution, 1, "cpu")
    built = workload.module(case, "eager", torch.float32)
    plain = create_model(name, resolution=resolution)
    plain.load_state_dict(workload.state(name, resolution))
    for of_built, of_plain in ((built.parameters(), plain.parameters()), (built.buffers(), plain.buffers())):
        assert all(torch.equal(one, other) for one, other in zip(of_built, of_plain, strict=True))


def build() -> None:
    for tensor in (*nn.Linear(3, 4).parameters(), *nn.Conv2d(3, 4, 3).parameters(), *nn.Embedding(3, 4).parameters()):
        tensor.requires_grad_(False).normal_().uniform_()
    nn.MultiheadAttention(4, 2)
    weight = torch.empty(4, 5)
    for draw in (init.trunc_normal_, init.xavier_normal_, init.xavier_uniform_, init.kaiming_normal_, init.normal_):
        draw(tensor=weight)
        draw(weight)


def test_nothing_is_drawn_while_it_is_entered() -> None:
    before = torch.get_rng_state()
    with Undrawn():
        build()
    assert torch.equal(torch.get_rng_state(), before)
    build()
    assert not torch.equal(torch.get_rng_state(), before)
