"""The report in a real browser: it opens from disk, asks for nothing, filters, sorts, links, and runs no one's markup.

Without a browser these are skipped and say so; `.ci/run` installs one where it can.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vitbench.hovering import room
from tests.vitbench.report import problems
from vitbench.report import page, reading

_LONG_TASKS = (
    "window.stalls = []; new PerformanceObserver((list) => list.getEntries().forEach((e) => stalls.push(e.duration)))"
    ".observe({type: 'longtask', buffered: true})"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a sweep, of failed rows, and of names and reasons that are markup."""
    folder = tmp_path_factory.mktemp("report")
    hostile = problems.row(
        model=problems.MARKUP, device_name=problems.MARKUP, latency_ms_p50=5.0, reason=problems.SCRIPT, top1=81.0
    )
    failed = problems.row(batch=512, status="oom", reason="CUDA out of memory")
    files = [problems.write(folder / "a.csv", [*problems.sweep(), hostile, failed]), *_committed()]
    return _made(files, folder / "index.html")


def _committed() -> list[Path]:
    results = problems.ROOT / "results"
    return [results / "truth" / "vit-resnet-a100.csv", results / "baseline" / "audit-sm_90-triton3.7.1.csv"]


def _made(files: list[Path], path: Path) -> Path:
    results = reading.read(files)
    path.write_text(page.html(results, page.sections(results), "a report"), encoding="utf-8")
    return path


def _open(browser: Any, path: Path, width: int = 1280, dark: bool = False) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    _until(lambda: browser.execute_script("return document.querySelectorAll('.chart svg').length") > 0)


def _until(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.02)


def _count(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('count').textContent"))


def _column(browser: Any, name: str) -> list[str]:
    script = """
    const heads = [...document.querySelectorAll('#head th')].map((th) => th.textContent.split(' ')[0]);
    return [...document.querySelectorAll('#body tr')].map((tr) => tr.cells[heads.indexOf(arguments[0])].textContent);
    """
    return list(browser.execute_script(script, name))


def _choose(browser: Any, id: str, value: str) -> None:
    script = """
    const element = document.getElementById(arguments[0]);
    element.value = arguments[1];
    element.dispatchEvent(new Event(element.tagName === 'SELECT' ? 'change' : 'input'));
    """
    browser.execute_script(script, id, value)


def test_all_that_has_not_come_into_view_is_printed_too(browser: Any, report: Path) -> None:
    _open(browser, report, width=390)
    drawn = "return [document.querySelectorAll('.chart').length, document.querySelectorAll('.chart svg').length]"
    charts, on_screen = browser.execute_script(drawn)
    assert on_screen < charts, "some are below what is seen"
    browser.execute_script(f"addEventListener('beforeprint', () => {{ window.printed = (() => {{ {drawn} }})() }})")
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.execute_script("return printed") == [charts, charts]
    empty = "return [...document.querySelectorAll('.chart svg')].filter((one) => !one.querySelector('path')).length"
    assert browser.execute_script(empty) == 0
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_opens_from_disk_asks_for_nothing_and_runs_no_markup(browser: Any, report: Path) -> None:
    _open(browser, report)
    assert browser.title == "a report"
    assert browser.execute_script("return document.querySelectorAll('img, section script').length") == 0
    assert problems.MARKUP in _column(browser, "model")
    assert problems.SCRIPT in _column(browser, "reason")
    _choose(browser, "model", problems.MARKUP)  # now pictures hold nothing but the hostile name
    _until(lambda: _count(browser) == "rows 1 to 1 of 1")
    _until(lambda: browser.execute_script("return document.querySelector('.chart svg')?.textContent ?? ''") != "")
    assert browser.title == "a report"
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def test_filters_sorts_and_links(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _open(browser, report)
    assert _count(browser) == "rows 1 to 26 of 26"
    _choose(browser, "impl", "compile")
    assert _count(browser) == "rows 1 to 12 of 12"
    _choose(browser, "text", "deit 448")
    _until(lambda: _count(browser) == "rows 1 to 3 of 3")
    browser.find_element(By.ID, "clear").click()
    assert _count(browser) == "rows 1 to 26 of 26"
    button = next(b for b in browser.find_elements(By.CSS_SELECTOR, "#head button") if b.text == "latency_ms_p50")
    button.send_keys(Keys.ENTER)  # by keyboard; numbers start with the largest
    fast = [float(text) for text in _column(browser, "latency_ms_p50") if text]
    assert fast == sorted(fast, reverse=True)
    assert len(fast) == 25
    assert _column(browser, "status")[-1] == "oom", "what has no number comes last"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert [float(text) for text in _column(browser, "latency_ms_p50") if text] == sorted(fast)
    point = browser.find_element(By.CSS_SELECTOR, "#chart-memory-over-batch-infer .mark-symbol.role-mark path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    webdriver_click(browser, point)
    _until(lambda: browser.execute_script("return document.activeElement.id.startsWith('row-')"))
    place = browser.find_element(By.ID, "chart-memory-over-batch-infer")
    place.send_keys(Keys.ARROW_RIGHT)
    assert "Enter: its row" in browser.find_element(By.ID, "said-memory-over-batch-infer").text
    place.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id.startsWith('row-')")


def webdriver_click(browser: Any, element: Any) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(element).click().perform()


_OVERLAPS = """
const boxes = [...document.querySelectorAll(
  'h1, h2, h3, .filters label, .filters button, figure .chart, figcaption, #table')]
  .map((e) => [e.id || e.className || e.textContent.slice(0, 40), e.getBoundingClientRect()])
  .filter(([, r]) => r.width && r.height);
const found = boxes.filter(([, r]) => r.right > innerWidth + 1 || r.left < -1).map(([name]) => name + ' sticks out');
boxes.forEach(([one, a], n) => boxes.slice(n + 1).forEach(([two, b]) => {
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (across > 1 && down > 1) found.push(one + ' over ' + two);
}));
return [...found, ...(document.documentElement.scrollWidth > innerWidth ? ['wider than the window'] : [])];
"""


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["narrow-dark", "wide-light"])
def test_lays_out_without_overlap(browser: Any, report: Path, width: int, dark: bool) -> None:
    _open(browser, report, width, dark)
    assert browser.execute_script(_OVERLAPS) == []
    paper, ink = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color].map((c) => +/\\d+/.exec(c)[0])"
    )
    label = browser.execute_script(
        "return +/\\d+/.exec(getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill)[0]"
    )
    assert (paper < 60 and ink > 200 and label > 150) if dark else (paper > 200 and ink < 60 and label < 100)
    assert browser.get_log("browser") == [], "a picture without names is no warning either"


@pytest.mark.parametrize("width", [390, 1280])
def test_what_a_point_tells_is_on_the_screen(browser: Any, report: Path, width: int) -> None:
    _open(browser, report, width)
    for number in (0, 12):  # on the left, and further right
        assert room(browser, "figure", "compute of pre-training", number) >= 0


def test_ten_thousand_rows_load_and_filter_without_a_stall(browser: Any, tmp_path: Path) -> None:
    path = _made([problems.write(tmp_path / "many.csv", list(problems.many(10_000)))], tmp_path / "index.html")
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _LONG_TASKS})
    assert path.stat().st_size < 3e6
    _open(browser, path)
    assert _count(browser) == "rows 1 to 100 of 10000"
    _choose(browser, "impl", "sdpa")
    assert _count(browser) == "rows 1 to 100 of 2500"
    _choose(browser, "text", "memory")
    _until(lambda: _count(browser) == "rows 1 to 100 of 250")
    assert max(browser.execute_script("return stalls"), default=0) < 500  # ms
