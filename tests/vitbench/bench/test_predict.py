"""What a row says of images a second before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitbench import cards
from vitbench.bench import isolation, predict
from vitbench.bench.plan import Case
from vitbench.measure.flops import FlopCount
from vitbench.predict.ask import ask
from vitbench.predict.forecast import forecast
from vitbench.predict.setting import Setting
from vitbench.variant import Variant

CASE = Case("resnet18", "eager", "infer", "amp", "nchw", (224, 224), 64, "cuda")


def test_without_a_card_nothing_is_predicted() -> None:
    assert predict.img_per_s(replace(CASE, device="cpu")) is None


def test_what_was_found_out_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = Case("efficientnet_b0", "eager", "infer", "fp32", "nchw", (64, 64), 1, "cpu")

    def ask(classes: int) -> tuple[FlopCount, float | None]:
        variant = Variant(num_classes=classes)
        predict.count.cache_clear()  # as in another process
        predict.memory_mib.cache_clear()
        return predict.count(here.model, here.resolution, variant), predict.memory_mib(here, variant)

    known = ask(7)
    assert known[0].gmacs > 0
    assert known[1] == pytest.approx(predict.find_memory(here, Variant(num_classes=7)))
    fewer_classes = ask(5)
    assert fewer_classes[0].params_m == pytest.approx(known[0].params_m - 2 * 1281 / 1e6)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("asked anew")

    monkeypatch.setattr("vitbench.measure.flops.count", refuse)
    monkeypatch.setattr("vitbench.measure.memory.predict", refuse)
    assert (ask(7), ask(5)) == (known, fewer_classes)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # other kernels, which take other memory
    with pytest.raises(RuntimeError, match="asked anew"):
        ask(7)


def test_on_a_card_the_row_says_what_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is pretended: all that follows is what a machine with one runs."""
    card = cards.find("RTX 4090")
    monkeypatch.setattr(predict, "_card_here", lambda case: card)
    predict.img_per_s.cache_clear()
    setting = Setting("resnet18", (224, 224), "nchw", "amp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before, held = isolation.state(), isolation.fakes_held()
    predicted = predict.img_per_s(CASE)
    assert not isolation.changed(before)
    assert isolation.fakes_held() <= held, "which would cost the worker its process"
    assert predicted == forecast(ask(setting), setting, card, 64).img_per_s
    compiled = replace(setting, impl="compile")
    assert predict.img_per_s(replace(CASE, impl="compile")) == forecast(ask(compiled), compiled, card, 64).img_per_s
    assert predict.img_per_s(replace(CASE, impl="compile"), Variant(compile_mode="max-autotune")) is None
    for other in (replace(CASE, impl="sdpa"), replace(CASE, mode="train")):
        assert predict.img_per_s(other) is None
    assert predict.img_per_s(CASE, Variant(num_classes=10)) is None
    predict.img_per_s.cache_clear()
