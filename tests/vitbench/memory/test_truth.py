"""The committed comparison with published figures: its statistics, and that it is what this code predicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.memory import recipes, truth

COMMITTED = Path(__file__).parents[3] / "results" / "truth" / "memory.csv"


def committed() -> list[dict[str, str]]:
    return truth.read(COMMITTED)


def test_predictions_are_as_close_as_is_asked() -> None:
    found = truth.statistics(committed())
    assert found.good, str(found)
    assert found.count >= 19


def test_every_published_figure_is_there_with_a_prediction_or_a_reason() -> None:
    rows = committed()
    columns = [*truth.published()[0], "predicted_mib", "reason"]
    assert list(rows[0]) == columns
    assert [{name: row[name] for name in columns[:-2]} for row in rows] == truth.published()
    assert all(row["predicted_mib"] or row["reason"] for row in rows)
    assert [truth.reason_of(row) for row in rows] == [row["reason"] for row in rows]


@pytest.mark.parametrize("model", ["dino vit_small_patch16 (no head)", "dino vit_small_patch16 last 4 blocks"])
def test_the_committed_predictions_are_this_codes(model: str) -> None:
    row = next(row for row in committed() if row["model"] == model)
    assert truth.predict(row) == pytest.approx(float(row["predicted_mib"]), rel=0.002)


def test_statistics_tell_good_from_bad() -> None:
    rows = [{"predicted_mib": str(100 * ratio), "measured_mib": "100", "reason": ""} for ratio in (1, 1, 1, 1.02, 1.2)]
    assert not truth.statistics(rows).good
    assert truth.statistics(rows[:4]).good
    assert truth.statistics(rows[:4]).share == 1


def test_a_workload_without_a_recipe_says_so() -> None:
    with pytest.raises(recipes.NotRebuilt, match="no recipe for some_net"):
        recipes.work_of({"model": "some_net"})
