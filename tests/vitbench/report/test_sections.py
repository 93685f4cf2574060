"""What the report draws, by the content of the Vega scene: marks, axes, words; and what it says in numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.vitbench.report import problems
from vitbench.report import page, reading
from vitbench.report.figures import MOST, Figure, upward
from vitbench.report.kinds import KINDS
from vitbench.report.reading import Results
from vitbench.report.sections import pareto

vl_convert = pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    own = problems.ROOT / "results"
    committed = [own / "truth" / "vit-resnet-a100.csv", own / "baseline" / "audit-sm_90-triton3.7.1.csv"]
    return reading.read([problems.write(tmp_path_factory.mktemp("sections") / "a.csv", problems.sweep()), *committed])


@pytest.fixture(scope="module")
def figures(results: Results) -> dict[str, Figure]:
    return {figure.name: figure for part in page.sections(results) for figure in part.figures}


@pytest.fixture(scope="module")
def facts(results: Results) -> list[str]:
    return [fact for part in page.sections(results) for fact in part.facts]


class Scene:
    """A picture's SVG: how many marks of each kind, and the words by their role."""

    def __init__(self, figure: Figure, results: Results) -> None:
        drawn = figure.drawn(results.frames[figure.kind], KINDS[figure.kind].shown)
        self.root = ElementTree.fromstring(vl_convert.vegalite_to_svg(json.loads(json.dumps(drawn))))

    def marks(self, kind: str) -> int:
        return sum(len(group) for group in self._groups(f"mark-{kind} role-mark"))

    def words(self, role: str) -> list[str]:
        return ["".join(text.itertext()) for group in self._groups(role) for text in group.iter() if text.text]

    def _groups(self, name: str) -> list[Any]:
        return [group for group in self.root.iter() if name in group.get("class", "")]


def test_latency_has_a_curve_a_point_and_a_whisker_for_each_case(
    figures: dict[str, Figure], results: Results, facts: list[str]
) -> None:
    scene = Scene(figures["latency-over-batch-infer"], results)
    assert scene.marks("symbol") == scene.marks("rule") == 7 * 3, "seven of eight curves"
    assert scene.words("role-axis-title") == ["batch size", "milliseconds per step"]
    assert len(scene.words("role-legend-label")) == MOST
    assert "deit_small_patch16_224 compile 224" in scene.words("role-legend-label")
    assert "resnet50 eager 224, inference: latency grows as batch^1.00 (3 sizes)" in facts
    assert "resnet50 eager, inference: latency grows as resolution^2.00 (2 sizes)" in facts
    assert any(
        fact.startswith("compile over eager, inference: median 2.00, 2.00 to 2.00 in 12 cases") for fact in facts
    )


def test_memory_has_predicted_lines_measured_points_and_static_parts(
    figures: dict[str, Figure], results: Results, facts: list[str]
) -> None:
    scene = Scene(figures["memory-over-batch-infer"], results)
    assert scene.marks("symbol") == 7 * 3
    assert scene.words("role-axis-title") == ["batch size", "peak MiB"]
    assert "resnet50 eager 224, inference: 99 MiB static and 9 MiB for each image" in facts
    largest = [fact for fact in facts if fact.startswith("resnet50, training: the largest batch is")]
    assert largest == [
        "resnet50, training: the largest batch is 1,878 at 224 px, 917 at 320 px, 542 at 416 px, 359 at 512 px"
    ]


def test_curves_that_cross_are_marked_there(tmp_path: Path) -> None:
    """8 b + 100 and 24 b + 20 MiB meet at batch 5; between 4 and 8, on logarithmic axes, the drawn lines do near it."""
    rows = [
        problems.row(model=model, batch=batch, latency_ms_p50=1.0) | {"predicted_mem_mib": each * batch + static}
        for model, each, static in (("resnet50", 8, 100), ("resnet18", 24, 20))
        for batch in (1, 2, 4, 8)
    ]
    results = reading.read([problems.write(tmp_path / "a.csv", rows)])
    figure = next(f for part in page.sections(results) for f in part.figures if f.name == "memory-over-batch-infer")
    [note] = figure.notes
    assert note["batch"] == pytest.approx(5, rel=0.02)
    assert note["predicted_mem_mib"] == pytest.approx(140, rel=0.02)
    assert Scene(figure, results).marks("text") == 1


def test_the_front_in_the_picture_is_the_front_in_words(figures: dict[str, Figure], results: Results) -> None:
    frame = results.frames["models"]
    frame = frame[frame["top1"].gt(0) & frame["gmacs"].gt(0) & frame["exaflops"].isna()]
    best = pareto.front(frame, "gmacs", less=True)
    beaten = [
        ((frame["gmacs"] <= g) & (frame["top1"] >= t) & ((frame["gmacs"] < g) | (frame["top1"] > t))).any()
        for g, t in zip(best["gmacs"], best["top1"], strict=True)
    ]
    assert not any(beaten)
    scene = Scene(figures["pareto-macs"], results)
    [line] = scene._groups("mark-line role-mark")
    corners = re.findall(r"[ML]", line[0].get("d"))
    assert len(corners) >= 2 * len(best) - 1, "each step has a corner"
    assert scene.marks("symbol") == len(frame)
    assert best["model"].iloc[-1] in {
        word for group in scene._groups("mark-text role-mark") for word in group.itertext()
    }
    assert scene.words("role-axis-title") == ["multiply-accumulates of an image, 10^9", "published ImageNet top-1, %"]


def test_more_throughput_is_better_and_less_energy(figures: dict[str, Figure], results: Results) -> None:
    timed = results.ok("sweep")
    assert set(pareto.front(timed, "img_per_s", less=False)["model"]) == {"resnet50", "deit_small_patch16_224"}
    assert pareto.front(timed, "img_per_s", less=False)["img_per_s"].iloc[0] == timed["img_per_s"].max()
    assert pareto.front(timed, "energy_j_per_img", less=True)["cost"].iloc[0] == timed["energy_j_per_img"].min()
    assert {"pareto-throughput", "pareto-energy", "pareto-latency", "pareto-memory", "pareto-params"} <= set(figures)


def test_audited_kernels_have_a_roof_and_fill_their_pipes(figures: dict[str, Figure], results: Results) -> None:
    audit = results.frames["audit"]
    roof = Scene(figures["kernels-roofline"], results)
    assert roof.marks("symbol") == (audit["matrix_us"].gt(0) & audit["bytes_us"].gt(0)).sum()
    assert roof.words("role-legend-label") == ["sm_90"]
    pipes = Scene(figures["kernels-pipes-sm_90"], results)
    passes = set(audit["kernel"] + audit["pass"].str.replace(r"_[0-9]+$", "", regex=True))
    assert pipes.marks("rect") == pipes.marks("text") == 8 * len(passes)
    assert "H200" in figures["kernels-pipes-sm_90"].title


def test_kernels_beside_peers(tmp_path: Path) -> None:
    header = ["kernel", "case", "pass", "dtype", "impl", "status", "reason", "median_us", "ci_low_us", "ci_high_us"]
    rows = [
        {"kernel": "bias_attention", "case": "cmt_s", "pass": "fwd", "dtype": "bf16", "impl": impl, "status": "ok",
         "median_us": us, "ci_low_us": us - 1, "ci_high_us": us + 1}
        for impl, us in (("eager", 90), ("sdpa", 40), ("fused", 25))
    ]  # fmt: skip
    results = reading.read([problems.write(tmp_path / "kernels.csv", rows, header)])
    part = next(part for part in page.sections(results) if part.name == "kernels")
    [figure] = part.figures
    scene = Scene(figure, results)
    assert (scene.marks("symbol"), scene.marks("rule")) == (3, 3)
    assert scene.words("role-legend-label") == ["eager", "fused", "sdpa"]


def test_predicted_throughput_has_a_front_for_each_card(tmp_path: Path) -> None:
    header = ["model", "family", "gpu", "resolution", "batch", "dtype", "layout", "img_per_s", "low", "high", "top1"]
    rows = [
        dict(zip(header, (model, "x", gpu, 224, 256, "amp", "nchw", speed, speed - 9, speed + 9, top1), strict=True))
        for gpu in ("RTX 4090", "L4")
        for model, speed, top1 in (("a", 900, 70), ("b", 500, 80), ("c", 400, 75))
    ]
    published = [{"gpu": "L4", "model": "a", "measured_img_per_s": 900, "predicted_img_per_s": 990}]
    files = [
        problems.write(tmp_path / "predictions.csv", rows, header),
        problems.write(tmp_path / "truth.csv", published, list(published[0])),
    ]
    results = reading.read(files)
    parts = {part.name: part for part in page.sections(results)}
    fronts = {f.name: f for f in parts["pareto"].figures if f.kind == "predicted"}
    assert set(fronts) == {"pareto-predicted-throughput-l4", "pareto-predicted-throughput-rtx-4090"}
    scene = Scene(fronts["pareto-predicted-throughput-l4"], results)
    assert scene.words("mark-text role-mark") == ["a", "b"], "c is beaten by b"
    assert "1 published throughputs: predicted / measured has the median 1.100" in parts["speed"].facts
    assert Scene(parts["speed"].figures[0], results).marks("symbol") == 1


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    failed = problems.row(status="oom", reason="CUDA out of memory")
    parts = page.sections(reading.read([problems.write(tmp_path / "a.csv", [failed])]))
    said = {part.name: " ".join(part.missing) for part in parts}
    assert "vitbench bench" in said["speed"]
    assert "vitbench memory-curves" in said["memory"]
    assert "vitbench doctor" in said["energy"]
    assert "make audit-accept" in said["kernels"]


def test_a_pointer_is_told_words_and_no_picture() -> None:
    """Of a field called `image` or `title` Vega's tooltip makes a picture and a heading."""
    truth = [
        problems.ROOT / "results" / "truth" / name for name in ("memory.csv", "throughput.csv", "kernel-times.csv")
    ]
    figures = [figure for part in page.sections(reading.read(truth)) for figure in part.figures]
    told = {
        name for figure in figures for name in re.findall(r'"title": "(\w+)", "type"', json.dumps(tooltips(figure)))
    }
    assert {"model", "pixels", "measured_mib", "source"} <= told
    assert not told & {"image", "title"}


def tooltips(figure: Figure) -> list[Any]:
    layers = figure.chart.to_dict(validate=False).get("layer", [])
    return [layer["encoding"]["tooltip"] for layer in layers if "tooltip" in layer["encoding"]]


@pytest.mark.parametrize(("low", "high", "labels"), [(150, 40_000, "200 1k 2k 10k 20k"), (0.5, 3, "0.5 0.6 0.7 1 2 3")])
def test_logarithmic_axes_name_what_vega_chose_and_shortly(low: float, high: float, labels: str) -> None:
    axis = upward("mib", "MiB").to_dict()
    chart = {"data": {"values": [{"mib": low}, {"mib": high}]}, "mark": "point", "height": 300, "encoding": {"y": axis}}
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(json.loads(json.dumps(chart))))
    groups = [group for group in root.iter() if "role-axis-label" in group.get("class", "")]
    assert [text.text for group in groups for text in group.iter() if text.text] == labels.split()
