"""CUDA's caching allocator, replayed: what it counts as allocated and what it takes from the device.

The rules are those of torch's c10/cuda/CUDACachingAllocator.cpp with its default settings: sizes are multiples of
512 B; up to 1 MiB they come out of segments of 2 MiB, up to 10 MiB out of segments of 20 MiB, and larger ones have a
segment of their own in multiples of 2 MiB. The smallest free block that fits is taken, and is split where what is left
is worth keeping; else the whole block counts as allocated. Segments are never given back here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20
GRANULE = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT = 10 * MIB
_ROUND = 2 * MIB


class _Block:
    __slots__ = ("address", "before", "free", "next", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self.free = False
        self.before: _Block | None = None
        self.next: _Block | None = None


class OutOfMemory(Exception):
    """The device has no room for a segment, even after everything that is free was given back."""


@dataclass(frozen=True)
class Peak:
    """In bytes: the most that was allocated at a time (`max_memory_allocated`), and what was taken for it."""

    allocated: int
    reserved: int


class Allocator:
    """Allocates and frees numbered storages; `allocated`, `peak` and `reserved` in bytes.

    Args:
        capacity: bytes that the device has for it.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.allocated = self.peak = self.reserved = 0
        self._capacity = capacity
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        self._of: dict[int, tuple[_Block, list[tuple[int, int, _Block]]]] = {}
        self._end = 0

    def beside(self, capacity: int | None) -> Allocator:
        """Another one, of a capacity, that begins with what lies here and never goes. Nothing was freed here so far.

        Raises: OutOfMemory.
        """
        if capacity is not None and self.reserved > capacity:
            raise OutOfMemory
        made = Allocator(capacity)
        made.allocated, made.peak, made.reserved, made._end = self.allocated, self.peak, self.reserved, self._end
        for small, blocks in self._free.items():
            for size, address, block in blocks:
                rest = _Block(address, size)
                rest.free, rest.before = True, block.before  # which is not free, and stays so
                made._free[small].append((size, address, rest))
        return made

    def allocate(self, number: int, size: int) -> None:
        """Raises: OutOfMemory."""
        size = -(-size // GRANULE) * GRANULE or GRANULE
        small = size <= _SMALL
        free = self._free[small]
        at = bisect_left(free, (size,))
        block = free.pop(at)[2] if at < len(free) else self._segment(size, small)
        rest = block.size - size
        if rest > _SMALL or (small and rest):
            after = block.next
            left = _Block(block.address + size, rest)
            left.free, left.before, left.next = True, block, after
            if after is not None:
                after.before = left
            block.next, block.size = left, size
            insort(free, (rest, left.address, left))
        block.free = False
        self._of[number] = (block, free)
        self.allocated += block.size
        if self.allocated > self.peak:
            self.peak = self.allocated

    def free(self, number: int) -> None:
        block, free = self._of.pop(number)
        self.allocated -= block.size
        before, after = block.before, block.next
        if after is not None and after.free:
            del free[bisect_left(free, (after.size, after.address))]
            block.size += after.size
            block.next = after.next
            if after.next is not None:
                after.next.before = block
        if before is not None and before.free:
            del free[bisect_left(free, (before.size, before.address))]
            before.size += block.size
            before.next = block.next
            if block.next is not None:
                block.next.before = before
            block = before
        block.free = True
        insort(free, (block.size, block.address, block))

    def free_from(self, first: int) -> None:
        """Every storage whose number is `first` or more."""
        for number in [number for number in self._of if number >= first]:
            self.free(number)

    def _segment(self, size: int, small: bool) -> _Block:
        taken = _SMALL_SEGMENT if small else _LARGE_SEGMENT if size < _OWN_SEGMENT else -(-size // _ROUND) * _ROUND
        if self._capacity is not None and self.reserved + taken > self._capacity:
            self._give_back()
            if self.reserved + taken > self._capacity:
                raise OutOfMemory
        block = _Block(self._end, taken)
        self._end += taken + _ROUND  # segments lie apart
        self.reserved += taken
        return block

    def _give_back(self) -> None:
        """Segments in which nothing lives."""
        for blocks in self._free.values():
            whole = [one for one in blocks if one[2].before is None and one[2].next is None]
            self.reserved -= sum(size for size, _, _ in whole)
            blocks[:] = [one for one in blocks if one not in whole]


def replay(
    sizes: Sequence[int], held: int, events: Sequence[int], allocator: Allocator, times: int = 2, there: int = 0
) -> Peak:
    """Allocates the first `held` storages, then runs the events (a number comes, its complement goes) some times over.

    Twice is enough for the cache to be what it is for the rest of a training run. The first `there` storages lie in the
    allocator already.

    Raises: OutOfMemory where the allocator's capacity is too small.
    """
    for number in range(there, held):
        allocator.allocate(number, sizes[number])
    for _ in range(times):
        for event in events:
            if event >= 0:
                allocator.allocate(event, sizes[event])
            elif ~event >= held:
                allocator.free(~event)
        allocator.free_from(held)  # what the step returned
    return Peak(allocator.peak, allocator.reserved)


__all__ = ["GRANULE", "MIB", "Allocator", "OutOfMemory", "Peak", "replay"]
