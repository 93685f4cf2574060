"""The storages of a step for every batch: each one's bytes as a constant and a part that grows with the batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from vitbench.memory.allocator import GRANULE, Allocator, Peak, replay
from vitbench.memory.setting import KINDS
from vitbench.memory.work import Storages

#: A batch whose multiples no size of a model is by chance.
PRIME = 113


@dataclass(frozen=True, eq=False)
class Recording:
    """Storage number i has constant[i] + batch * slope[i] bytes; events as in `Storages`."""

    constant: NDArray[np.int64]
    slope: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    held: int
    events: NDArray[np.int32]
    products: bool
    convolutions: bool
    recurrent: bool

    def sizes(self, batch: int) -> NDArray[np.int64]:
        return self.constant + batch * self.slope

    def equals(self, storages: Storages, batch: int) -> bool:
        """Whether these are the storages of a step of that batch, byte for byte and in the same order."""
        return (
            self.held == storages.held
            and np.array_equal(self.events, storages.events)
            and np.array_equal(self.sizes(batch), storages.sizes)
        )

    def parts(self, batch: int) -> dict[str, int]:
        """Bytes of each kind that are alive when most are, each storage rounded up as CUDA's allocator does."""
        sizes = -(-self.sizes(batch) // GRANULE) * GRANULE
        comes = self.events >= 0
        numbers = np.where(comes, self.events, ~self.events)
        steps = np.where(comes, sizes[numbers], -sizes[numbers])
        steps[numbers < self.held] = 0
        at = int(np.argmax(np.concatenate([[0], np.cumsum(steps)])))
        alive = np.bincount(self.kinds[: self.held], sizes[: self.held], len(KINDS))
        alive += np.bincount(self.kinds[numbers[:at]], steps[:at], len(KINDS))
        return {kind: int(size) for kind, size in zip(KINDS, alive, strict=True)}

    def replay(self, batch: int, workspace: int = 0, capacity: int | None = None) -> Peak:
        """As the caching allocator counts it, in the steady state of a loop over such steps.

        Args:
            workspace: bytes that lie there beside the model's.
            capacity: bytes that there are.

        Raises: OutOfMemory.
        """
        begun = _begun(self, workspace).beside(capacity)
        return replay(self.sizes(batch).tolist(), self.held, self._events, begun, there=self.fixed)

    @cached_property
    def _events(self) -> list[int]:
        return self.events.tolist()

    @cached_property
    def fixed(self) -> int:
        """How many of the storages that are held come before the first that grows with the batch."""
        grows = np.flatnonzero(self.slope[: self.held])
        return int(grows[0]) if len(grows) else self.held


@lru_cache(maxsize=2)
def _begun(recording: Recording, workspace: int) -> Allocator:
    """What lies there at every batch, which is replayed for hundreds of them: the workspace and what is fixed."""
    found = Allocator()
    if workspace:
        found.allocate(-1, workspace)
    for number, size in enumerate(recording.constant[: recording.fixed].tolist()):
        found.allocate(number, size)
    return found


def guess(storages: Storages, batch: int) -> Recording:
    """The recording of a trace at a batch that is a prime: what is a multiple of it grows with the batch."""
    sizes = np.array(storages.sizes, np.int64)
    grows = sizes % batch == 0
    return Recording(np.where(grows, 0, sizes), np.where(grows, sizes // batch, 0), *_rest(storages))


def fit(first: Storages, batch: int, second: Storages, other: int) -> Recording | None:
    """The recording that both traces are of; None when they are of different steps."""
    if first.held != second.held or first.events != second.events or first.kinds != second.kinds:
        return None
    a, b = (np.array(storages.sizes, np.int64) for storages in (first, second))
    slope = (b - a) // (other - batch)
    found = Recording(a - batch * slope, slope, *_rest(first))
    return found if found.equals(second, other) else None


def exact(storages: Storages) -> Recording:
    """Of one batch alone."""
    sizes = np.array(storages.sizes, np.int64)
    return Recording(sizes, np.zeros_like(sizes), *_rest(storages))


def _rest(storages: Storages) -> tuple[NDArray[np.uint8], int, NDArray[np.int32], bool, bool, bool]:
    kinds = np.array([KINDS.index(kind) for kind in storages.kinds], np.uint8)
    events = np.array(storages.events, np.int32)
    return kinds, storages.held, events, storages.products, storages.convolutions, storages.recurrent


__all__ = ["PRIME", "Recording", "exact", "fit", "guess"]
