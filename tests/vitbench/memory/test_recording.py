"""Recordings: what is traced at one batch, known for others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench.memory.find import Traces, work_of
from vitbench.memory.recording import PRIME, exact, fit, guess
from vitbench.memory.setting import OPTIMIZERS, Setting
from vitbench.memory.work import (
    Trace,
    Training,
    Work,
    checkpoint_blocks,
    in_order,
    of_images,
    of_images_and_labels,
    trace,
)

WEIGHT = 4 * 300_000


class Dense(nn.Module):
    """No operator of it has temporaries, so its memory can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(300, 1000, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def work(batch: int, training: Training | None = None, build: Any = Dense, **options: Any) -> Work:
    def inputs() -> tuple[Tensor, ...]:
        x = torch.empty(batch, 3, 10, 10)
        return (x,) if training is None else (x, torch.empty(batch, dtype=torch.long))

    return Work(build, inputs, of_images if training is None else of_images_and_labels, training, **options)


def parts(work: Work) -> dict[str, int]:
    return exact(trace(work)).parts(1)


def test_inference_of_one_layer_is_arithmetic() -> None:
    found = parts(work(7))
    assert found == {
        "weights": 1_200_128,  # 1,200,000 in steps of 512
        "gradients": 0,
        "optimizer": 0,
        "activations": 8704 + 28160,  # 7 x 300 and 7 x 1000 floats
    }


def test_training_of_one_layer_is_arithmetic() -> None:
    found = parts(work(7, Training()))
    assert found["weights"] == 1_200_128
    assert found["optimizer"] == 2 * 1_200_128 + 512  # two moments, and fused AdamW's count on the device
    assert found["gradients"] == 1_200_128


@pytest.mark.parametrize(
    ("training", "kind", "more"),
    [
        (Training("adamw-foreach"), "optimizer", -512),  # the count of steps lies with the host
        (Training("adamw-capturable"), "optimizer", 0),
        (Training("sgd"), "optimizer", -1_200_128 - 512),
        (Training("none"), "optimizer", -2 * 1_200_128 - 512),
        (Training(ema=True), "weights", 1_200_128),
        (Training(ddp=True), "gradients", 1_200_128),
        (Training(ddp=True, bucket_view=True), "gradients", 0),
    ],
)
def test_what_training_adds(training: Training, kind: str, more: int) -> None:
    plain = {"weights": 1_200_128, "optimizer": 2 * 1_200_128 + 512, "gradients": 1_200_128}
    assert parts(work(7, training))[kind] == plain[kind] + more


def test_a_foreach_step_takes_as_much_as_the_parameters() -> None:
    fused, foreach = (parts(work(1, Training(name)))["activations"] for name in ("adamw", "adamw-foreach"))
    assert foreach - fused > 1_200_000 - 3 * 4096


def test_a_capturable_step_corrects_the_bias_on_the_device() -> None:
    foreach, capturable = (
        parts(work(1, Training(name)))["activations"] for name in ("adamw-foreach", "adamw-capturable")
    )
    assert capturable - foreach == 2 * 512  # a number for each moment of the one parameter


def test_weights_that_no_gradient_reaches_have_neither_state_nor_gradient() -> None:
    def idle() -> nn.Module:
        model = Dense()
        model.register_parameter("unused", nn.Parameter(torch.empty(1000, 1000)))
        return model

    plain, more = parts(work(7, Training())), parts(work(7, Training(), idle))
    assert (more["optimizer"], more["gradients"]) == (plain["optimizer"], plain["gradients"])
    assert more["weights"] > plain["weights"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(1, 2))[0].flatten(1)


@pytest.mark.parametrize("training", [None, Training()])
def test_recurrent_layers_are_told_from_others(training: Training | None) -> None:
    assert trace(work(2, training, Recurrent)).recurrent
    assert not trace(work(2, training)).recurrent


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(300, 300), nn.GELU()) for _ in range(6)))
        self.more = nn.ModuleList(nn.TransformerEncoderLayer(300, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.more:
            x = block(x)
        return x


def test_checkpointed_blocks_keep_their_input_alone() -> None:
    assert checkpoint_blocks(Blocks()) == 2
    plain, kept = (parts(work(900, Training("none", checkpointing=on), Blocks))["activations"] for on in (False, True))
    assert kept < 0.8 * plain


def test_a_recording_of_one_prime_batch_is_right_for_others() -> None:
    found = guess(trace(work(PRIME, Training())), PRIME)
    for batch in (2, 64, 1000):
        assert found.equals(trace(work(batch, Training())), batch)


class Keeping(nn.Module):
    """Holds its last result until the next step, and has a parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()
        self.unused = nn.Parameter(torch.empty(1000))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x)
        self.last = y.detach() if x.shape[0] > 5 else None
        return y


@pytest.mark.parametrize("model", [Dense, Keeping, Blocks])
@pytest.mark.parametrize("training", [None, Training(ddp=True, ema=True), Training("sgd", set_to_none=False)])
def test_one_batch_after_the_other_is_traced_as_each_alone(
    training: Training | None, model: Callable[[], nn.Module]
) -> None:
    several = Trace(work(3, training, model))
    for batch in (7, 2, 7):
        again = work(batch, training, model)
        assert several.storages(again.inputs) == trace(again)


def test_a_size_that_is_no_multiple_of_the_batch_needs_two_traces() -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x.new_empty(5, *x.shape[1:])])

    at = {batch: trace(work(batch, build=Padded)) for batch in (PRIME, 8, 12)}
    assert not guess(at[PRIME], PRIME).equals(at[8], 8)
    found = fit(at[PRIME], PRIME, at[8], 8)
    assert found is not None
    assert found.equals(at[12], 12)
    assert fit(at[PRIME], PRIME, trace(work(8)), 8) is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_its_state(optimizer: str) -> None:
    found = parts(work(2, Training(optimizer)))
    copies = {"sgd": 1, "none": 0}.get(optimizer, 2)
    assert found["optimizer"] == pytest.approx(copies * found["weights"], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_that_run_again_do_so_under_cudas_autocast(dtype: torch.dtype) -> None:
    """Eager attention has a softmax, which CUDA's autocast runs in fp32 and the CPU's does not."""
    plain, kept = (
        parts(
            replace(
                work_of(Setting("vit_tiny_patch16_224", (64, 64), "train", "amp", "eager", checkpointing=on), 8),
                autocast=dtype,
            )
        )["activations"]
        for on in (False, True)
    )
    assert kept < plain


def test_traces_of_a_real_model_agree_with_its_recording() -> None:
    traces = Traces(Setting("vit_tiny_patch16_224", (64, 64), "train", "amp", "sdpa"))
    traces.verify(40)
    assert traces.verified == [40]
    assert traces.at(64).equals(traces.storages(64), 64)


def test_the_first_trace_of_a_process_is_as_the_next() -> None:
    code = (
        "from vitbench.memory import find, setting\n"
        "s = setting.Setting('vit_tiny_patch16_224', (224, 224), 'infer', 'amp', 'eager', optimizer='none')\n"
        "first, second = (find.Traces(s).storages(5) for _ in range(2))\n"
        "assert first == second\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_goes_together_is_in_the_order_of_coming() -> None:
    assert in_order([0, 1, 2, ~2, ~0, 3, ~3, ~1]) == [0, 1, 2, ~0, ~2, 3, ~1, ~3]
