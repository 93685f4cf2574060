"""Pages of predictions in a real browser: they fit a phone, are dark in the dark, and ask for nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.vitbench.hovering import room
from vitbench import drawing
from vitbench.memory import command as memory
from vitbench.memory.plan import Row as MemoryRow
from vitbench.predict import command as predict
from vitbench.predict.plan import Row

pytestmark = pytest.mark.skipif(drawing.plotting_missing(), reason="needs the plotting packages")
MARKUP = "<img src=x onerror=document.title=1>"


def _memory(folder: Path) -> Path:
    rows = [
        MemoryRow(model, str(px), batch, "train", "amp", "eager", "adamw", "A100 80GB",
                  peak_mib=start + batch * px * each, largest_batch=90_000 // (px * each))
        for model, start, each in ((MARKUP, 100.0, 9), ("a_model_with_a_name_of_some_length_patch16", 3000.0, 1))
        for px in (224, 384)
        for batch in (1, 8, 64)
    ]  # fmt: skip
    return memory.write(rows, folder / "memory", "Peak memory, predicted")[-1]


def _predictions(folder: Path) -> Path:
    models = [(f"model_{n}_of_a_name_of_some_length_224", 60.0 + n, 1e5 / 2**n) for n in range(12)]
    rows = [
        Row(model, MARKUP, "RTX 4090", "224", 256, "amp", "nchw", img_per_s=rate, top1=top1)
        for model, top1, rate in [*models, ("beaten", 59.0, 100.0)]
    ]  # fmt: skip
    return predict.write(rows, folder)[-1]


@pytest.fixture(scope="module", params=[_memory, _predictions])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same one for every width and scheme, as its pictures take seconds to draw."""
    path: Path = request.param(tmp_path_factory.mktemp("page"))
    return path


@pytest.mark.parametrize(("width", "dark"), [(390, True), (390, False), (1280, True), (1280, False)])
def test_pages_follow_width_and_scheme(browser: Any, page: Path, width: int, dark: bool) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser")
    browser.get(page.as_uri())
    charts = browser.execute_script("return document.querySelectorAll('.chart').length")
    end = time.monotonic() + 30
    while browser.execute_script("return document.querySelectorAll('.chart svg').length") < charts:
        assert time.monotonic() < end, "not every chart is drawn"
        time.sleep(0.02)
    assert charts > 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll('.chart text')].filter((one) => {
      const box = one.getBoundingClientRect();
      return box.width && (box.left < 0 || box.right > innerWidth);
    }).map((one) => one.textContent)"""
    assert browser.execute_script(outside) == []
    assert room(browser, ".chart", "", 2) >= 0
    pale = """const clear = /rgba\\(.*, 0\\)|none|transparent/;
    const bright = (colour) => clear.test(colour) ? null : +/\\d+/.exec(colour)[0];
    const [svg, label] = ['.chart svg', '.chart .role-axis-label text'].map((one) => document.querySelector(one));
    const grounds = [document.body, ...document.querySelectorAll('.chart, .chart svg')];
    return [grounds.map((one) => bright(getComputedStyle(one).backgroundColor)),
      [...svg.querySelectorAll('path.background')].map((one) => bright(getComputedStyle(one).fill)),
      bright(getComputedStyle(label).fill)]"""
    (page, *under), back, label = browser.execute_script(pale)
    assert (page < 60 and label > 150) if dark else (page > 200 and label < 100)
    assert {*under, *back} == {None}, "the page's own ground is seen through charts"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    box = browser.execute_script(
        "const box = document.querySelector('.scroll'); box.focus(); return document.activeElement === box"
    )
    assert box, "the table can be scrolled by keyboard"


def test_the_libraries_are_bundled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundled = drawing.libraries()
    (kept,) = (tmp_path / "vitbench" / "drawing").iterdir()
    assert kept.read_bytes().decode() == bundled
    kept.write_text("of the first call")
    assert drawing.libraries() == "of the first call"
