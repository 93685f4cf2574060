"""Published times of kernels: where they are from, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitbench import cards
from vitbench.results.table import Table

PUBLISHED = Path(__file__).with_name("published.csv")
TEST, FITTED, LEFT_OUT = "test", "fitted", "left out"
DO_BENCH, BACK_TO_BACK = "do_bench", "back to back"


@dataclass(frozen=True)
class Point:
    """One published time.

    Attributes:
        kernel, shape: what ran; a shape is words name=value.
        card: as `vitbench.cards` calls it.
        bound: memory, or compute or latency: what the source's shapes leave a good kernel bound by.
        method: do_bench (between two events, L2 overwritten before) or back to back (many launches, no gaps).
        extra_bytes: of memory, moved by what the time holds beside the kernels.
        use: test; fitted, where a constant of the model was taken from it; left out, with the reason in `note`.
    """

    kernel: str
    shape: str
    card: str
    bound: str
    source: str
    method: str
    measured_us: float
    extra_bytes: int
    use: str
    note: str

    @property
    def sizes(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.shape.split())

    def size(self, name: str) -> int:
        return int(self.sizes[name])


def published() -> list[Point]:
    """All of them, in the file's order.

    Raises: InputError when the file is damaged or names a card that is not known.
    """
    found = Table(Point, "a file of published kernel times").read(PUBLISHED)
    for point in found:
        cards.find(point.card)
    return found
