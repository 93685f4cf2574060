"""What the report draws of a sweep: curves over the batch size, or a ranking where there is only one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitbench.report.curves import throughput_chart
from vitbench.results.row import SCHEMA, TABLE

pytestmark = pytest.mark.fast

ROW = TABLE.of(
    schema=SCHEMA, case="", status="ok", reason="", model="cmt_s", family="cmt", impl="eager", mode="infer",
    dtype="fp32", layout="nchw", device="cpu", device_name="a CPU", resolution="224", batch=1, input="noise",
    weights="random", img_per_s=100.0, latency_ms_p50=10.0, torch="2.13.0", threads=1,
)  # fmt: skip


def _marks(chart: Any) -> list[tuple[str, str]]:
    found = chart.to_dict()
    panels = [panel for column in found["hconcat"] for panel in column.get("vconcat", column.get("hconcat", [column]))]
    return [(panel["mark"]["type"], panel["encoding"]["x"]["field"]) for panel in panels]


def test_several_batch_sizes_are_curves_and_one_is_a_ranking() -> None:
    models = [replace(ROW, model=name, case=name, batch=1, status="ok") for name in ("a", "b")]
    assert _marks(throughput_chart(models)) == [("point", "img_per_s"), ("point", "latency_ms_p50")]
    both = [*models, *(replace(row, batch=4) for row in models)]
    assert _marks(throughput_chart(both)) == [("line", "batch"), ("line", "batch")]


def test_nothing_timed_is_no_chart() -> None:
    assert throughput_chart([replace(ROW, status="oom")]) is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(60, 180, [60, 70, 80, 90, 100]), (110, 3000, [200, 500, 1000, 2000])]
)
def test_a_logarithmic_axis_ends_where_its_data_do_and_has_few_ticks(low: float, high: float, ticks: list[int]) -> None:
    speeds = ((1, low), (4, high))
    rows = [replace(ROW, batch=batch, speed=replace(ROW.speed, latency_ms_p50=ms)) for batch, ms in speeds]
    y = throughput_chart(rows).to_dict()["hconcat"][0]["vconcat"][1]["encoding"]["y"]
    assert y["scale"]["nice"] is False
    assert [tick for tick in y["axis"]["values"] if low <= tick <= high] == ticks
