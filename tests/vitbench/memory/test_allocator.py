"""The replayed caching allocator, against what its rules give by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitbench.memory.allocator import MIB, Allocator, OutOfMemory, replay


def test_small_blocks_share_a_segment_in_steps_of_512_bytes() -> None:
    allocator = Allocator()
    allocator.allocate(0, 1)
    allocator.allocate(1, 513)
    assert (allocator.allocated, allocator.reserved) == (512 + 1024, 2 * MIB)


def test_a_rest_of_a_mebibyte_is_not_split_off() -> None:
    allocator = Allocator()
    allocator.allocate(0, 11 * MIB + 512)  # a segment of 12 MiB
    assert (allocator.allocated, allocator.reserved) == (12 * MIB, 12 * MIB)
    allocator.allocate(1, 3 * MIB)  # of 20 MiB, whose rest is kept for others
    assert (allocator.allocated, allocator.reserved) == (15 * MIB, 32 * MIB)
    allocator.allocate(2, 5 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 32 * MIB)


def test_neighbours_that_are_free_become_one() -> None:
    allocator = Allocator()
    for number in range(4):
        allocator.allocate(number, 5 * MIB)
    for number in (0, 2, 1):
        allocator.free(number)
    allocator.allocate(4, 15 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = Allocator()
    for number, size in enumerate((40, 30, 20)):
        allocator.allocate(number, size * MIB)
    for number in range(3):
        allocator.free(number)
    allocator.allocate(3, 25 * MIB)
    allocator.allocate(4, 40 * MIB)
    assert allocator.reserved == 90 * MIB


def test_what_is_free_is_given_back_before_there_is_no_memory() -> None:
    allocator = Allocator(capacity=50 * MIB)
    allocator.allocate(0, 30 * MIB)
    allocator.free(0)
    allocator.allocate(1, 40 * MIB)
    assert allocator.reserved == 40 * MIB
    with pytest.raises(OutOfMemory):
        allocator.allocate(2, 12 * MIB)


def test_a_step_is_replayed_to_its_steady_state() -> None:
    peak = replay([100 * MIB, 40 * MIB, 50 * MIB], 1, [1, 2, ~1], Allocator())
    assert peak.allocated == 190 * MIB
    assert peak.reserved == 190 * MIB


@pytest.mark.parametrize("capacity", [None, 400 * MIB, 260 * MIB, 100 * MIB])
def test_what_never_goes_is_laid_out_once_for_many_replays(capacity: int | None) -> None:
    sizes = [30 * MIB, 300, 5 * MIB, 90 * MIB, 700, 3 * MIB, 200 * MIB, 8 * MIB]
    events = [4, 5, 6, ~5, 7, ~4, ~6]
    begun = Allocator()
    for number in range(3):
        begun.allocate(number, sizes[number])

    def peak(allocator: Callable[[], Allocator], there: int) -> object:
        try:
            return replay(sizes, 4, events, allocator(), there=there)
        except OutOfMemory:
            return "out of memory"

    for _ in range(2):
        assert peak(lambda: begun.beside(capacity), 3) == peak(lambda: Allocator(capacity), 0)
