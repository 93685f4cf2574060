"""The committed comparison with published throughputs: its statistics, and that it is what this code predicts."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
import pytest

from vitbench.predict import calibration, traced, truth
from vitbench.predict.ask import ask
from vitbench.predict.published import (
    COMPILED,
    JUDGING,
    JUDGING_COMPILED,
    PUBLISHED,
    TRACED,
    TRACED_COMPILED,
    figures,
    judged_by,
)
from vitbench.predict.published import traced as committed_kernels
from vitbench.predict.refit import refit
from vitbench.predict.setting import IMPLS, Setting
from vitbench.predict.table import macs_of

FOLDER = Path(__file__).parents[3] / "results" / "truth"
FILES = {"eager": FOLDER / "throughput.csv", "compile": FOLDER / "throughput-compile.csv"}


@pytest.fixture(scope="module", params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def committed(impl: str) -> list[truth.Row]:
    return truth.read(FILES[impl])


def test_held_out_families_are_as_close_as_is_asked(impl: str, committed: list[truth.Row]) -> None:
    families = [one for one in truth.statistics(committed) if (one.held_out, one.rare) == ("family", "all")]
    assert {one.gpu for one in families} == set(calibration.fitted(impl).sustained)
    if impl == "eager":
        assert truth.missed(families) == []
    for one in families:  # compiled one card misses the 17 % that are asked, as the document says
        assert one.median <= truth.FAMILY[0]
        assert one.p90 <= 0.19
        assert one.spearman >= 0.985


def test_a_compiled_card_never_seen_is_as_close_as_is_asked() -> None:
    """And bf16, which nothing was fitted to, as close as fp16."""
    of_all = [one for one in calibration.errors("compile") if one.rare == "all"]
    (unseen,) = (one for one in of_all if (one.held_out, one.gpu) == ("card", "RTX 5090"))
    assert truth.missed([unseen]) == []
    (fp16,) = (one for one in of_all if (one.held_out, one.gpu) == ("family", "RTX PRO 6000 Max-Q"))
    (bf16,) = (one for one in of_all if one.held_out == "dtype")
    assert bf16.median <= fp16.median + 0.01
    assert bf16.p90 <= fp16.p90 + 0.01


def test_eight_anchors_bring_every_card_as_close_as_is_asked(impl: str, committed: list[truth.Row]) -> None:
    """Cards of which nothing else was known, by choices of anchors that look at names alone."""
    anchored = [one for one in truth.statistics(committed) if (one.held_out, one.rare) == ("anchors", "all")]
    assert {one.gpu for one in anchored} == {row["gpu"] for row in committed if row["held_out"] == "card"}
    assert truth.missed(anchored) == []


def test_anchors_are_of_different_families_and_no_model_is_judged_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = next(judged_by("compile"))
    fitted = calibration.fitted("compile")
    one = next(one for one in joined.measured if one.card not in fitted.sustained)
    chosen = [truth._anchors(joined, [int(n) for n in np.flatnonzero(one.known)], number) for number in range(10)]
    assert len({tuple(each) for each in chosen}) == 10
    for each in chosen:
        assert len({joined.known[n].family for n in each}) == calibration.ADVISED == len(each)

    def marked(joined: object, fitted: object, one: object, anchors: list[int]) -> tuple[object, object]:
        rates = np.full(len(one.known), 1.0 + chosen.index(anchors))  # type: ignore[attr-defined]
        return rates, np.zeros_like(rates)

    monkeypatch.setattr(truth, "_corrected", marked)
    number = {(known.model, str(known.resolution)): n for n, known in enumerate(joined.known)}
    rows = [row for row in truth._unseen(joined, fitted, one) if row["held_out"] == "anchors"]
    assert len(rows) == one.known.sum()
    by = [int(float(row["predicted_img_per_s"])) - 1 for row in rows]
    assert all(number[row["model"], row["resolution"]] not in chosen[n] for row, n in zip(rows, by, strict=True))
    assert len(set(by)) == 10


def test_a_card_that_is_off_by_a_common_factor_is_said_to_be() -> None:
    rows = [{**row(120.0 + number), "held_out": "card", "family": "ab"[number % 2]} for number in range(20)]
    rows += [{**row(100.0), "held_out": "card", "gpu": "RTX 3090"} for _ in range(20)]
    (said,) = truth.why(rows)
    common = np.median(np.log([(120.0 + number) / 100 for number in range(20)]))
    assert said.startswith(
        f"RTX 4090 held out: 100% of the figures are predicted too fast, in the median by {common:+.1%}"
    )
    far = sum(np.log((120.0 + number) / 100) > 0.25 for number in range(20))
    assert f"More than 25% off are {far} of 20: " in said


def test_the_statistics_that_commands_print_are_those_of_the_table(impl: str, committed: list[truth.Row]) -> None:
    found = truth.statistics(committed)
    assert len(found) == len(calibration.errors(impl))
    for one, kept in zip(found, calibration.errors(impl), strict=True):
        assert astuple(kept)[:5] == astuple(one)[:5]
        assert astuple(kept)[5:] == pytest.approx(astuple(one)[5:], abs=1e-4)


def test_every_figure_of_a_traced_model_is_there(impl: str, committed: list[truth.Row]) -> None:
    traced_in, fitted_to, judging = {
        "eager": (TRACED, PUBLISHED, JUDGING),
        "compile": (TRACED_COMPILED, COMPILED, JUDGING_COMPILED),
    }[impl]
    known = {(one.model, one.resolution, one.layout) for one in committed_kernels(traced_in)}
    for path, held_out in ((fitted_to, {"family"}), (judging, {"card", "layout", "dtype"})):
        published = figures(path)
        want = {
            (f.model, f.resolution, f.gpu, f.layout) for f in published if (f.model, f.resolution, f.layout) in known
        }
        have = {
            (row["model"], int(row["resolution"]), row["gpu"], row["layout"])
            for row in committed
            if row["held_out"] in held_out
        }
        assert want <= have


def test_the_fit_gives_the_committed_parameters(impl: str) -> None:
    kept = calibration.fitted(impl)
    again = refit(impl, kept)
    for name, value in asdict(again.parameters).items():
        assert value == pytest.approx(getattr(kept.parameters, name), rel=0.02), name
    for card, factors in again.sustained.items():
        assert factors == pytest.approx(kept.sustained[card], rel=0.01)


def test_what_was_judged_is_what_the_committed_parameters_predict(impl: str, committed: list[truth.Row]) -> None:
    """Of cards, layouts and dtypes that nothing was fitted to: every row again."""
    for joined in judged_by(impl):
        again = truth.judged(joined, calibration.fitted(impl))
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
