"""A recorded step replays what the step does; only a GPU can show it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitbench.measure import graphs
from vitbench.measure.step import make_step

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _on_gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).cuda()


def test_replay_computes_what_the_step_does_on_whatever_the_input_holds() -> None:
    step = make_step(model(), torch.randn(2, 3, 8, 8, device="cuda"), "infer")
    replay = graphs.record(step)
    step.x.copy_(torch.randn_like(step.x))
    replayed = replay()
    assert isinstance(replayed, torch.Tensor)
    torch.testing.assert_close(replayed, step())


def test_replay_trains() -> None:
    net = model()
    step = make_step(net, torch.randn(2, 3, 8, 8, device="cuda"), "train", capturable=True)
    replay = graphs.record(step)
    before = net[0].weight.detach().clone()
    replay()
    assert not torch.equal(before, net[0].weight)
