"""Curves of predictions: where they cross, how steep they are, what is drawn."""

from __future__ import annotations

import pytest

from vitbench import drawing
from vitbench.memory import curves
from vitbench.memory.plan import Row


def test_curves_cross_where_both_have_the_same_height() -> None:
    ((x, y),) = curves.crossings([(1, 1), (4, 16)], [(1, 4), (4, 4)])
    assert (x, y) == pytest.approx((2, 4))
    assert curves.crossings([(1, 1), (4, 2)], [(1, 4), (4, 4)]) == []
    assert curves.crossings([(1, 1), (4, 16)], [(2, 4)]) == []
    assert curves.crossings([(2, 8), (1, 4)], [(1, 4), (2, 4)]) == [(1, 4)]


def test_the_slope_is_that_of_large_batches() -> None:
    assert curves.slope([(1, 100), (2, 101), (4, 121)]) == 10
    assert curves.slope([(8, 3), (8, 3)]) is None


def row(model: str, px: int, batch: int, peak: float, largest: int) -> Row:
    return Row(
        model, str(px), batch, "train", "amp", "eager", "adamw", "RTX 4090", peak_mib=peak, largest_batch=largest
    )


ROWS = [
    row(model, px, batch, start + batch * each * px, 9000 // (each * px))
    for model, start, each in (("steep", 100.0, 9), ("flat", 3000.0, 1))
    for px in (32, 64)
    for batch in (1, 2, 64)
]


@pytest.mark.skipif(drawing.plotting_missing(), reason="needs the plotting packages")
def test_crossings_slopes_and_measured_points_are_drawn() -> None:
    chart = curves.chart(ROWS, {ROWS[0]: 111.5})
    assert chart is not None
    text = chart.to_json()
    assert "288.0 MiB an image" in text
    ((x, y),) = curves.crossings(
        *(
            [(r.batch, r.peak_mib or 0) for r in ROWS if r.model == m and r.resolution == "32"]
            for m in ("steep", "flat")
        )
    )
    assert f"batch {x:.0f}, {y:,.0f} MiB" in text
    assert "111.5" in text
    assert "Largest batch, training, RTX 4090 (predicted)" in text


def test_one_case_is_no_curve() -> None:
    assert curves.chart(ROWS[:1]) is None
    assert curves.chart([Row("m", "32", 1, "infer", "amp", "eager", "none", "A10", reason="unknown")]) is None


@pytest.mark.skipif(drawing.plotting_missing(), reason="needs the plotting packages")
def test_each_model_is_drawn_at_its_own_size() -> None:
    """`native` means another size for each, and one size a model is no curve over sizes."""
    rows = [row("small", 32, batch, 10.0 * batch, 9) for batch in (1, 2)]
    rows += [row("large", 64, batch, 40.0 * batch, 5) for batch in (1, 2)]
    chart = curves.chart(rows)
    assert chart is not None
    drawn = chart.to_dict()
    (panels,) = drawn["hconcat"]
    (panel,) = panels["vconcat"]
    assert panel["title"] == "Peak memory, training, each model's smallest size, RTX 4090 (predicted)"
    (points,) = drawn["datasets"].values()
    assert {(one["series"], one["batch"], one["MiB"]) for one in points} == {
        ("small: 10.0 MiB an image", 1, 10), ("small: 10.0 MiB an image", 2, 20),
        ("large: 40.0 MiB an image", 1, 40), ("large: 40.0 MiB an image", 2, 80),
    }  # fmt: skip
