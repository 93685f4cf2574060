"""The profile of a launch as a page, in a real browser where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitbench.audit import command, page
from vitbench.audit.options import AuditOptions
from vitbench.audit.run import Audited, audit
from vitbench.audit.show import hot, show
from vitbench.audit.timeline import LANES, timeline
from vitbench.errors import InputError

KERNELS = str(Path(__file__).with_name("counted_kernels.py"))
MARKUP = "<b onclick=alert(1)>&bold</b>"


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    cache = tmp_path_factory.mktemp("machine_code")
    (found,) = audit([KERNELS], "256x128x512-tile64-stages3", [90], 1, cache)
    assert found.row.status == "ok", found.row.reason
    return found


def test_timeline_is_of_one_warp_from_its_first_cycle_to_its_last(item: Audited) -> None:
    found = timeline(item, 40)
    assert found is not None
    assert item.profile is not None
    assert item.simulated is not None
    warps = item.row.programs * item.row.num_warps
    assert found.counts["products"] == item.profile.by_name["HGMMA"] / warps
    assert (
        sum(count for lane, count in found.counts.items() if lane != "waiting")
        == (item.simulated.first_path >= 0).sum()
    )
    assert set(found.columns) <= set(LANES)
    assert all(len(busy) == 40 and min(busy) >= 0 and max(busy) <= 1 for busy in found.columns.values())
    waited = sum(found.columns["waiting"]) * found.cycles / 40
    assert waited == pytest.approx(found.counts["waiting"], rel=0.01, abs=2)
    # Loads come first, and all of the products after the first of them has arrived.
    loads, products = (next(n for n, b in enumerate(found.columns[lane]) if b) for lane in ("loads", "products"))
    assert loads < products


def test_eligible_warps_are_those_that_were_or_could_have_been_selected(item: Audited) -> None:
    assert item.simulated is not None
    eligible = item.simulated.eligible_per_cycle
    assert item.simulated.issued_per_cycle / 4 <= eligible <= 16
    assert f"eligible warps of a scheduler: {eligible:.2f} a cycle" in show(item)
    assert "timeline of the first program's first warp" in show(item)


def test_page_goes_with_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--html writes what --show prints"):
        command.run(AuditOptions(html=tmp_path / "page.html"))


def test_a_launch_that_failed_says_why(item: Audited) -> None:
    failed = replace(item, compiled=None, row=replace(item.row, status="error", reason=MARKUP))
    assert hot(failed) == ("no machine code", [])
    assert "error: &lt;b onclick" in page.html([failed])


def test_page_in_a_browser(item: Audited, tmp_path: Path, browser: Any) -> None:
    hostile = replace(item, row=replace(item.row, case=MARKUP, reason=MARKUP))
    path = tmp_path / "profile.html"
    path.write_text(page.html([item, hostile]), encoding="utf-8")
    seen = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(path.as_uri())
        seen.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert not browser.get_log("browser")
    assert seen[0] != seen[1]
    assert browser.execute_script("return document.querySelectorAll('section').length") == 2
    rows = "return document.querySelectorAll('#l0 table.code tbody tr').length"
    assert browser.execute_script(rows) == len(hot(item)[1])
    assert browser.execute_script("return document.querySelectorAll('#l0 svg rect').length") > 40
    assert browser.execute_script("return document.querySelectorAll('b').length") == 0
    assert MARKUP in browser.execute_script("return document.querySelector('#l1 h2').textContent")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
