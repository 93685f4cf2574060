"""The committed comparison with published throughputs: its statistics, and that it is what this code predicts."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
import pytest

from vitbench.predict import calibration, traced, truth
from vitbench.predict.ask import ask
from vitbench.predict.published import JUDGING, TRACED, figures, join
from vitbench.predict.published import traced as committed_kernels
from vitbench.predict.refit import refit
from vitbench.predict.setting import Setting
from vitbench.predict.table import macs_of

COMMITTED = Path(__file__).parents[3] / "results" / "truth" / "throughput.csv"


@pytest.fixture(scope="module")
def committed() -> list[truth.Row]:
    return truth.read(COMMITTED)


def test_held_out_families_are_as_close_as_is_asked(committed: list[truth.Row]) -> None:
    families = [one for one in truth.statistics(committed) if (one.held_out, one.rare) == ("family", "all")]
    assert {one.gpu for one in families} == set(calibration.fitted().sustained)
    assert truth.missed(families) == []


def test_the_statistics_that_commands_print_are_those_of_the_table(committed: list[truth.Row]) -> None:
    found = truth.statistics(committed)
    assert len(found) == len(calibration.errors())
    for one, kept in zip(found, calibration.errors(), strict=True):
        assert astuple(kept)[:5] == astuple(one)[:5]
        assert astuple(kept)[5:] == pytest.approx(astuple(one)[5:], abs=1e-4)


def test_every_figure_of_a_traced_model_is_there(committed: list[truth.Row]) -> None:
    known = {(one.model, one.resolution, one.layout) for one in committed_kernels()}
    for path, held_out in ((None, {"family"}), (JUDGING, {"card", "layout"})):
        published = figures(path) if path else figures()
        want = {
            (f.model, f.resolution, f.gpu, f.layout) for f in published if (f.model, f.resolution, f.layout) in known
        }
        have = {
            (row["model"], int(row["resolution"]), row["gpu"], row["layout"])
            for row in committed
            if row["held_out"] in held_out
        }
        assert want <= have


def test_the_fit_gives_the_committed_parameters() -> None:
    kept = calibration.fitted()
    again = refit(kept)
    for name, value in asdict(again.parameters).items():
        assert value == pytest.approx(getattr(kept.parameters, name), rel=0.02), name
    for card, factors in again.sustained.items():
        assert factors == pytest.approx(kept.sustained[card], rel=0.01)


def test_what_was_judged_is_what_the_committed_parameters_predict(committed: list[truth.Row]) -> None:
    """Of cards and layouts that nothing was fitted to: every row again."""
    for layout in ("nchw", "nhwc"):
        chosen = [figure for figure in figures(JUDGING) if figure.layout == layout]
        again = truth.judged(join([k for k in committed_kernels() if k.layout == layout], chosen), calibration.fitted())
        key = ("model", "resolution", "gpu", "layout", "held_out")
        kept = {tuple(row[name] for name in key): row for row in committed}
        for row in again:
            old = kept[tuple(row[name] for name in key)]
            assert float(row["predicted_img_per_s"]) == pytest.approx(float(old["predicted_img_per_s"]), rel=2e-3)


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_the_committed_kernels_are_what_is_traced(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = next((k for k in committed_kernels() if k.model == model and k.layout == "nchw" and not k.reparam), None)
    if kept is None:
        pytest.skip(f"{TRACED.name} has no {model}")
    (setting,) = (s for s in traced.settings(figures()) if s == _setting(model, kept.resolution))
    answer = ask(setting)
    again = traced.known(setting, answer)
    assert (again.parameters, again.family) == (kept.parameters, kept.family)
    assert macs_of(answer.kernels) == pytest.approx(kept.macs, rel=1e-6)
    assert sum(count for _, count in again.kernels) == sum(count for _, count in kept.kernels)


def _setting(model: str, size: int) -> Setting:
    return Setting(f"timm:{model}", (size, size), "nchw", "amp-fp16", fast_norm=True, num_classes=1000)


def row(predicted: float, measured: float = 100.0, rare: float = 0.0) -> truth.Row:
    given = {"predicted_img_per_s": str(predicted), "measured_img_per_s": str(measured), "rare": str(rare)}
    return {"held_out": "family", "gpu": "RTX 4090", "layout": "nchw", "family": "a", **given}


def test_statistics_tell_good_from_bad() -> None:
    good = [row(100 + number, 100 + number + number % 3) for number in range(30)]
    assert truth.missed(truth.statistics(good)) == []
    (all_of_them, few) = truth.statistics([row(110.0, 100.0), row(220.0, 200.0)])
    assert (all_of_them.rare, few.rare) == ("all", "few")
    assert all_of_them.median == pytest.approx(np.log(1.1))
    assert len(truth.missed([all_of_them])) == 1
