"""What fuzzed tests share: input is understood, or refused in one line; there is no third."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitbench.errors import InputError


def understood(parse: Callable[..., Any], *given: Any) -> Any:
    """What `parse` makes of it, None where it refuses; whatever else it raises is a fault."""
    try:
        return parse(*given)
    except InputError as error:
        told = str(error)
    assert told
    assert "\n" not in told
    return None
