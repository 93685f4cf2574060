"""What a chart's point tells a pointer that is over it."""

from __future__ import annotations

import time
from typing import Any

_POINT = """
const chart = [...document.querySelectorAll(arguments[0])].find((one) => one.textContent.includes(arguments[1]));
chart.scrollIntoView({block: 'center'});
return chart.querySelectorAll('.mark-symbol.role-mark path')[arguments[2]] ?? null;
"""
_TOLD = """
const box = document.querySelector('#vg-tooltip-element.visible')?.getBoundingClientRect();
return box ? [box.left, box.top, innerWidth - box.right, innerHeight - box.bottom] : null;
"""


def room(browser: Any, selector: str, text: str, number: int, seconds: float = 30) -> float:
    """The least pixels between the screen's edges and what the point with this number tells; negative beyond it.

    Args:
        selector: of charts; that which holds the text is meant.
    """
    from selenium.webdriver.common.action_chains import ActionChains

    end = time.monotonic() + seconds
    while (point := browser.execute_script(_POINT, selector, text, number)) is None:
        assert time.monotonic() < end, "the chart is not drawn"
        time.sleep(0.02)
    ActionChains(browser).move_to_element(point).perform()
    while (told := browser.execute_script(_TOLD)) is None:
        assert time.monotonic() < end, "the point tells nothing"
        time.sleep(0.02)
    return min(map(float, told))
