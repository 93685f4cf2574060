"""The error that decides whether an implementation may be timed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitbench import verify
from vitbench.verify import Outcome


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_training_check_leaves_the_model_as_it_was() -> None:
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = verify.run(model, X, "train")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert set(outcome.gradients) == {name for name, _ in model.named_parameters()}


def test_randomness_is_off_in_a_training_check() -> None:
    model = net().train()
    first, second = verify.run(model, X, "train"), verify.run(model, X, "train")
    assert verify.relative_error(first, second) == 0


def test_a_compiled_model_has_the_names_of_its_own() -> None:
    model = net().train()
    compiled = torch.compile(model, backend="eager")
    assert verify.relative_error(verify.run(compiled, X, "train"), verify.run(model, X, "train")) == 0


def test_gradients_are_those_of_cross_entropy() -> None:
    model = net().train()
    outcome = verify.run(model, X, "train")
    with verify.without_dropout(model):
        nn.functional.cross_entropy(model(X), torch.tensor([0, 7, 4, 1])).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(outcome.gradients[name], parameter.grad, atol=1e-7)


def test_one_wrong_gradient_is_seen() -> None:
    """A small parameter's gradient off by a third moves the whole gradient's norm by little; it is still seen."""
    model = net().train()
    want = verify.run(model, X, "train")
    wrong = {**want.gradients, "1.weight": want.gradients["1.weight"] * 4 / 3}
    assert verify.relative_error(Outcome(want.output, wrong), want) == pytest.approx(1 / 3, rel=1e-4)


def test_a_gradient_that_is_only_rounding_does_not_count_in_full() -> None:
    """The bias before batch normalisation has gradient zero; noise in it is held against the others."""
    model = net().train()
    want = verify.run(model, X, "train")
    assert want.gradients["0.bias"].norm() < 1e-6 * want.gradients["0.weight"].norm()
    noisy = {**want.gradients, "0.bias": want.gradients["0.bias"] + 1e-8}
    assert verify.relative_error(Outcome(want.output, noisy), want) < 1e-2


def test_nan_never_passes() -> None:
    want = Outcome(torch.ones(3), {})
    assert verify.relative_error(Outcome(torch.tensor([1.0, math.nan, 1.0]), {}), want) == math.inf
    assert not Outcome(torch.tensor([math.inf]), {}).finite()
    assert not Outcome(torch.ones(1), {"w": torch.tensor([math.nan])}).finite()


def test_limit_is_twice_eagers_error_and_never_less_than_a_last_place() -> None:
    assert verify.limit(0.02, torch.bfloat16) == 0.04
    assert verify.limit(1e-9, torch.bfloat16) == 2**-7
    assert verify.limit(1e-9, torch.float16) == 2**-10
    assert verify.limit(1e-9, torch.float32) == 1e-5


def test_error_is_a_ratio_of_norms() -> None:
    assert verify.relative_error(Outcome(torch.tensor([3.0, 4.5]), {}), Outcome(torch.tensor([3.0, 4.0]), {})) == 0.1
