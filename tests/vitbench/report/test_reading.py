"""Result files that are damaged, old, foreign or of several machines: read as far as they go, and losses are said."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.vitbench.report import problems
from vitbench.catalog import published
from vitbench.errors import InputError
from vitbench.report import reading
from vitbench.report.kinds import KINDS
from vitbench.report.page import sections
from vitbench.results.row import HEADER, HEADERS

pytestmark = pytest.mark.fast

CASES = problems.sweep()


def test_a_last_line_cut_short_is_left_out_and_said(tmp_path: Path) -> None:
    path = problems.write(tmp_path / "a.csv", CASES)
    path.write_bytes(path.read_bytes()[:-30])
    results = reading.read([path])
    assert len(results.frames["sweep"]) == len(CASES) - 1
    assert results.notes == [f"{path}: the last line is cut short; left out"]


def test_missing_and_unknown_columns_are_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    header = ["colour", *(name for name in HEADER if name not in ("latency_ms_p50", "energy_j_per_img"))]
    results = reading.read([problems.write(tmp_path / "a.csv", CASES, header)])
    missing, unknown = results.notes
    assert "lacks latency_ms_p50, energy_j_per_img" in missing
    assert "not known: colour" in unknown
    drawn = {part.name: [figure.name for figure in part.figures] for part in sections(results)}
    assert drawn["speed"] == drawn["energy"] == []
    assert "memory-over-batch-infer" in drawn["memory"]


def test_damaged_lines_and_cells_are_counted(tmp_path: Path) -> None:
    bad = problems.row(latency_ms_p50=3.0) | {"latency_ms_p50": "fast", "img_per_s": "inf"}
    path = problems.write(tmp_path / "a.csv", [*CASES, bad])
    path.write_text(path.read_text() + "1,2,3\n")
    results = reading.read([path])
    assert len(results.frames["sweep"]) == len(CASES) + 1
    said = " ".join(results.notes)
    assert "1 line has not" in said
    assert "1 cell is no number in latency_ms_p50" in said
    assert "1 cell is no number in img_per_s" in said
    sections(results)


def test_schemas_and_machines_stand_beside_each_other(tmp_path: Path) -> None:
    old = [problems.row(schema=1, device_name="RTX 4090", batch=batch, latency_ms_p50=7.0 * batch) for batch in (1, 4)]
    first = problems.write(tmp_path / "old.csv", old, HEADERS[1])
    results = reading.read([first, problems.write(tmp_path / "new.csv", CASES)])
    assert results.notes == ["2 machines: H200, RTX 4090. Curves of each are apart"]
    assert set(results.frames["sweep"]["source"]) == {published()[case["model"]].source for case in CASES}
    latency = next(f for part in sections(results) for f in part.figures if f.name == "latency-over-batch-infer")
    assert {name.rpartition(" ")[2] for name in latency.series} == {"H200", "4090"}


def test_what_is_no_result_is_left_out_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "b.csv"
    other.write_text("name,age\nx,3\n")
    picture = tmp_path / "c.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\n")
    results = reading.read([other, picture, problems.write(tmp_path / "a.csv", CASES)])
    assert [note.partition(";")[0] for note in results.notes] == [
        f"{other} is no file of results that is known by its columns (name, age)",
        f"{picture} is not a vitbench CSV: it is not text",
    ]
    with pytest.raises(InputError, match="no row to report"):
        reading.read([other])
    with pytest.raises(InputError, match="does not exist"):
        reading.read([tmp_path / "none.csv"])


def test_our_own_files_lose_nothing() -> None:
    files = sorted((problems.ROOT / "results").glob("*/*.csv"))
    results = reading.read(files)
    assert results.notes == []
    assert {name for name in KINDS if len(results.frames[name])} >= {
        *("sweep", "memory", "audit", "published memory", "published kernel times", "published throughput"),
        *("predicted", "models"),
    }


def test_compute_of_recipes_is_what_the_paper_says() -> None:
    """arXiv:2010.11929, table 6: exaFLOPs of pre-training, counted by its authors from their own models."""
    models = reading.read([next((problems.ROOT / "results").glob("*/cmt_s.csv"))]).frames["models"]
    found = models.set_index(["model", "epochs"])["exaflops"]
    said = {
        ("vit_base_patch32_224", 7): 55, ("vit_base_patch16_224", 7): 224, ("vit_large_patch16_224", 14): 1567,
        ("vit_huge_patch14_224", 14): 4262, ("vit_base_r50_s16_224", 7): 274,
        ("vit_large_patch32_224", 7): 196, ("vit_large_patch16_224", 7): 783, ("vit_large_r50_s32_224", 7): 246,
    }  # fmt: skip
    for key, exaflops in said.items():
        assert found[key] == pytest.approx(exaflops, rel=0.03)


def test_every_recipe_has_a_source_that_was_looked_up() -> None:
    with reading.RECIPES.open(newline="", encoding="utf-8") as file:
        sources = [line["source"] for line in csv.DictReader(file)]
    assert all(re.match(r"arXiv:\d{4}\.\d{5} |[\w-]+/[\w-]+ \S+\.py: ", source) for source in sources)
    assert not any("memory" in source for source in sources)
