"""What a launch's loads and stores move between the L2 cache and the multiprocessors, masks and reuse included.

`vitbench.audit.workers.follow` finds the addresses; this file says which of the loads the L1 cache serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SECTOR = 32  # bytes that the caches move at a time
#: Sizes of the share of an L1 cache that a program may find itself with.
CAPACITIES = tuple(1024 << power for power in range(2, 9))


@dataclass(frozen=True)
class Traffic:
    """Bytes of a whole launch, scaled from the programs that were followed.

    Attributes:
        asked: bytes that active elements of loads ask for, with every repetition.
        asked_wide: those asked by loads of 16 contiguous bytes and more a thread, which may pass the L1 cache by.
        stored: bytes of the sectors that stores write.
        missed: for each of CAPACITIES, bytes of the sectors that loads fetch through an L1 share of that size.
        missed_narrow: the same when only the other, narrower loads go through it.
        programs: how many programs were followed.
        memory: bytes between the L2 cache and memory, where every program was followed; else None.
        common: bytes of the sectors that all programs load, once for each program; then of narrower loads alone.
        span: bytes that a program's loads ask of the L1 cache on an average; then its narrower loads alone.
        meeting: atomic operations on the element that most of them are on.
    """

    asked: float
    asked_wide: float
    stored: float
    missed: tuple[float, ...]
    missed_narrow: tuple[float, ...]
    programs: int
    memory: float | None = None
    common: tuple[float, float] = (0.0, 0.0)
    span: tuple[float, float] = (0.0, 0.0)
    meeting: float = 0.0

    def loaded(self, bypasses: bool, l1_bytes: float) -> float:
        """Bytes that loads bring from the L2 cache.

        Args:
            bypasses: the machine code copies to shared memory around the L1 cache (LDGSTS.BYPASS).
            l1_bytes: what of the L1 cache a program has to itself.
        """
        through = self.missed_narrow if bypasses else self.missed
        fitting = [amount for size, amount in zip(CAPACITIES, through, strict=True) if size <= l1_bytes]
        return (fitting[-1] if fitting else through[0]) + (self.asked_wide if bypasses else 0.0)

    def held(self, bypasses: bool, l1_bytes: float) -> float:
        """Of those bytes, what all but the first program of a multiprocessor find in its L1 cache.

        A sector that all programs load is loaded again after as many bytes as a program loads.

        Args:
            l1_bytes: of the whole L1 cache, that of programs that run at once together.
        """
        return self.common[bypasses] if self.span[bypasses] <= l1_bytes else 0.0


def total(parts: Iterable[Traffic], scale: float) -> Traffic:
    """The sum of programs' traffic, times `scale`."""
    found = list(parts)
    return Traffic(
        asked=scale * sum(part.asked for part in found),
        asked_wide=scale * sum(part.asked_wide for part in found),
        stored=scale * sum(part.stored for part in found),
        missed=tuple(scale * sum(amounts) for amounts in zip(*(part.missed for part in found), strict=True)),
        missed_narrow=tuple(
            scale * sum(amounts) for amounts in zip(*(part.missed_narrow for part in found), strict=True)
        ),
        programs=sum(part.programs for part in found),
    )
