"""The error that decides whether an implementation may be timed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from vitbench.verify import judge
from vitbench.verify.judge import Yardstick
from vitbench.verify.outcome import Outcome, relative_error, run, without_dropout

pytestmark = pytest.mark.fast


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_training_check_leaves_the_model_as_it_was() -> None:
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = run(model, X, "train")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert set(outcome.gradients) == {name for name, _ in model.named_parameters()}


def test_randomness_is_off_in_a_training_check() -> None:
    model = net().train()
    first, second = run(model, X, "train"), run(model, X, "train")
    assert relative_error(first, second) == 0


def test_a_compiled_model_has_the_names_of_its_own() -> None:
    model = net().train()
    compiled = torch.compile(model, backend="eager")
    assert relative_error(run(compiled, X, "train"), run(model, X, "train")) == 0


def test_gradients_are_those_of_cross_entropy() -> None:
    model = net().train()
    outcome = run(model, X, "train")
    with without_dropout(model):
        nn.functional.cross_entropy(model(X), torch.tensor([0, 7, 4, 1])).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(outcome.gradients[name], parameter.grad, atol=1e-7)


def test_one_wrong_gradient_is_seen() -> None:
    """A small parameter's gradient off by a third moves the whole gradient's norm by little; it is still seen."""
    model = net().train()
    want = run(model, X, "train")
    wrong = {**want.gradients, "1.weight": want.gradients["1.weight"] * 4 / 3}
    assert relative_error(Outcome(want.output, wrong), want) == pytest.approx(1 / 3, rel=1e-4)


def test_a_gradient_that_is_only_rounding_does_not_count_in_full() -> None:
    """The bias before batch normalisation has gradient zero; noise in it is held against the others."""
    model = net().train()
    want = run(model, X, "train")
    assert want.gradients["0.bias"].norm() < 1e-6 * want.gradients["0.weight"].norm()
    noisy = {**want.gradients, "0.bias": want.gradients["0.bias"] + 1e-8}
    assert relative_error(Outcome(want.output, noisy), want) < 1e-2


def test_nan_never_passes() -> None:
    want = Outcome(torch.ones(3), {})
    assert relative_error(Outcome(torch.tensor([1.0, math.nan, 1.0]), {}), want) == math.inf
    assert not Outcome(torch.tensor([math.inf]), {}).finite()
    assert not Outcome(torch.ones(1), {"w": torch.tensor([math.nan])}).finite()


def test_limit_is_twice_eagers_error_and_never_less_than_a_last_place() -> None:
    assert judge.limit(0.02, torch.bfloat16) == 0.04
    assert judge.limit(1e-9, torch.bfloat16) == 2**-7
    assert judge.limit(1e-9, torch.float16) == 2**-10
    assert judge.limit(1e-9, torch.float32) == 1e-5
    assert judge.limit(0.9, torch.bfloat16) == judge.CEILING


def outcome(**gradients: Tensor) -> Outcome:
    return Outcome(torch.ones(2, 4), {name: g.clone() for name, g in gradients.items()})


def test_no_gradient_is_judged_by_another_ones_error() -> None:
    """One parameter's gradient is all noise in bf16; the others' limits stay their own."""
    want = outcome(a=torch.ones(8), b=torch.ones(8), c=torch.ones(8))
    own = {"output 0": 0.01, "a": 0.01, "b": 0.02, "c": 0.9}
    yardstick = Yardstick(own, frozenset(), torch.bfloat16, judge.GRADIENT_FACTOR)
    assert yardstick.limits() == pytest.approx({"output 0": 0.02, "a": 0.06, "b": 0.06})
    assert yardstick.undecided() == ["c"]
    for factor, name in itertools.product((0.0, 2.0, -1.0), "ab"):
        wrong = Outcome(want.output, {**want.gradients, name: factor * want.gradients[name]})
        assert f"in {name}, more than 0.06" in judge.judge(wrong, want, yardstick).wrong
    assert judge.judge(want, want, yardstick).wrong == ""
    assert (
        "gradient of c is not within" in judge.judge(outcome(a=torch.ones(8), b=torch.ones(8)), want, yardstick).wrong
    )


@pytest.mark.parametrize("own", [0.0, 0.1, 0.2, 0.3, 0.9])
def test_no_own_error_lets_a_zero_or_doubled_tensor_be_judged_right(own: float) -> None:
    want = outcome(a=torch.ones(8), b=torch.ones(8))
    for factor in (judge.FACTOR, judge.GRADIENT_FACTOR):
        yardstick = Yardstick({"output 0": own, "a": own, "b": own}, frozenset(), torch.bfloat16, factor)
        assert max(yardstick.limits().values(), default=0.0) <= judge.CEILING < 1
        assert yardstick.limits().keys() | yardstick.undecided() == {"output 0", "a", "b"}
        assert judge.judge(outcome(b=torch.ones(8)), want, yardstick).wrong, "a gradient that is missing is zero"


def test_noise_where_the_exact_gradient_vanishes_may_have_any_small_size() -> None:
    exact = outcome(a=torch.ones(8), b=1e-9 * torch.ones(8))
    eager = outcome(a=torch.ones(8), b=0.15 * torch.ones(8))
    yardstick = Yardstick.of(eager, exact, torch.bfloat16)
    assert (yardstick.undecided(), yardstick.vanishing) == (["b"], {"b"})
    assert judge.judge(exact, eager, yardstick).wrong == ""
    assert judge.judge(outcome(a=torch.ones(8), b=torch.ones(8)), eager, yardstick).wrong


def test_error_is_a_ratio_of_norms() -> None:
    assert relative_error(Outcome(torch.tensor([3.0, 4.5]), {}), Outcome(torch.tensor([3.0, 4.0]), {})) == 0.1
