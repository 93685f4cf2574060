"""The inner loop of the simulation: one multiprocessor, warp instruction by warp instruction, compiled by numba.

Events are warps that could issue, kept in a heap by time and age: the oldest goes first. A warp that finds its
scheduler or its unit busy comes back when that is free. Units and memories are servers: each is free again at a time,
and what is asked of it starts then. Nothing is drawn by chance, so that results are equal from run to run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from vitbench.audit.model.decode import Kind, Unit

#: Why a warp did not issue, in the words of Nsight Compute.
REASONS = (
    "selected", "wait", "long scoreboard", "short scoreboard", "barrier", "math pipe throttle", "MIO throttle",
    "not selected", "product", "branch or start",
)  # fmt: skip
_SELECTED, _WAIT, _LONG, _SHORT, _BARRIER, _MATH, _MIO, _NOT_SELECTED, _PRODUCT, _START = range(10)

# numba takes module constants, not members of an enumeration.
_K = {kind.name: int(kind) for kind in Kind}
_NOTHING, _SHARED, _LOAD, _COPY, _STORE = (_K[n] for n in ("NOTHING", "SHARED", "LOAD", "COPY", "STORE"))
_LOCAL, _ATOMIC, _COMMIT, _COPY_WAIT = (_K[n] for n in ("LOCAL", "ATOMIC", "COPY_COMMIT", "COPY_WAIT"))
_MEET, _ARRIVE, _GROUP, _GROUP_WAIT = (_K[n] for n in ("BARRIER", "ARRIVE", "GROUP_PRODUCT", "GROUP_WAIT"))
_BULK, _TENSOR, _TENSOR_COMMIT, _PHASE_WAIT = (_K[n] for n in ("BULK", "TENSOR_PRODUCT", "TENSOR_COMMIT", "PHASE_WAIT"))
_BULK_STORE = _K["BULK_STORE"]
_LSU, _MATRIX, _UNITS = int(Unit.LSU), int(Unit.MATRIX), len(Unit)

_GROUPS = 64  # groups of copies or products that a warp may have open
_PHASES = 4096  # phases that a program's warps may lie apart
_BARRIERS = 16
_QUEUE = 48.0  # cycles of work that the load/store unit takes in before warps must wait
_STORES = 400.0  # cycles of stores that are on their way before more of them wait


@njit(cache=True)
def _before(time: Any, age: Any, a: int, b: int) -> bool:
    return time[a] < time[b] or (time[a] == time[b] and age[a] < age[b])


@njit(cache=True)
def _push(heap: Any, size: int, time: Any, age: Any, warp: int) -> int:
    at = size
    heap[at] = warp
    while at > 0:
        above = (at - 1) >> 1
        if not _before(time, age, heap[at], heap[above]):
            break
        heap[at], heap[above] = heap[above], heap[at]
        at = above
    return size + 1


@njit(cache=True)
def _sink(heap: Any, size: int, time: Any, age: Any) -> None:
    """Puts the first element where it belongs after its time has grown."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            return
        if below + 1 < size and _before(time, age, heap[below + 1], heap[below]):
            below += 1
        if not _before(time, age, heap[below], heap[at]):
            return
        heap[at], heap[below] = heap[below], heap[at]
        at = below


@njit(cache=True)
def simulate(
    kind: Any, unit: Any, cycles: Any, latency: Any, stall: Any, write: Any, read: Any, wait: Any, moved: Any,
    argument: Any, group: Any,
    stream: Any, first: Any, length: Any, path_of: Any, leads: Any, warps: int, resident: int, total: int,
    l1_latency: float, l2_latency: float, memory_latency: float, read_latency: float, barrier_latency: float,
    matrix_latency: float, start_latency: float,
    l2_rate: float, memory_rate: float, l1_share: float, memory_share: float, loaded_per_byte: float,
    copied_per_byte: float, stored_per_byte: float, atomic_factor: float,
) -> Any:  # fmt: skip
    """Runs `total` programs, `resident` at a time, on one multiprocessor.

    Args:
        kind ... group: the code, as in `decode.Code`.
        stream, first, length: paths one after another, where each begins, how long it is.
        path_of: [programs, warps], the path of each warp; programs beyond take those from the beginning again.
        leads: [programs, warps], whether a warp is the first one of its path: only those issue what one thread does.
        l1_share: of loads, those that the L1 cache serves; memory_share: of the others, those that memory serves.
        loaded_per_byte, copied_per_byte, stored_per_byte: bytes from and to L2 for each byte that a load which misses
            the L1 cache, a copy, a store can move; atomic_factor: what an atomic operation takes of L2, in stores.
        l2_rate, memory_rate: bytes a cycle.

    Returns: end of each program in cycles, in the order they ended; when the last store has arrived; instructions
        issued; [instructions, REASONS] cycles; when the first warp of the first program issued each of its path.
    """
    slots = resident * warps
    time = np.zeros(slots)
    age = np.zeros(slots, np.int64)
    heap = np.zeros(slots + 1, np.int64)
    size = 0
    path = np.zeros(slots, np.int64)
    at = np.zeros(slots, np.int64)
    leader = np.zeros(slots, np.bool_)
    barrier = np.zeros((slots, 6))
    slow = np.zeros((slots, 6), np.bool_)  # whether the barrier's last holder asked the memory
    copies = np.zeros((slots, _GROUPS))
    copies_from = np.zeros(slots, np.int64)
    copies_to = np.zeros(slots, np.int64)
    copying = np.zeros(slots)
    products = np.zeros((slots, _GROUPS))
    products_from = np.zeros(slots, np.int64)
    products_to = np.zeros(slots, np.int64)
    multiplying = np.zeros(slots)
    waits_at = np.full(slots, -1, np.int64)  # a named barrier, or _BARRIERS for a phase
    phase_of = np.zeros(slots, np.int64)
    left = np.zeros(resident, np.int64)
    arrived = np.zeros((resident, _BARRIERS), np.int64)
    latest = np.zeros((resident, _BARRIERS))
    phase = np.zeros((resident, _PHASES))
    phases = np.zeros(resident, np.int64)
    coming = np.zeros(resident)  # when the copies of the phase that is open will be there
    issue_free = np.zeros(4)
    unit_free = np.zeros((4, _UNITS))
    lsu = 0.0
    l2 = 0.0
    memory = 0.0
    from_l1 = 0.0
    from_memory = 0.5
    ends = np.zeros(total)
    ended = 0
    started = 0
    born = 0
    issued = 0
    lost = np.zeros((len(kind), 10))
    when = np.zeros(length[path_of[0, 0]])

    while True:
        # Programs take the places of those that ended.
        for slot in range(resident):
            if left[slot] or started >= total:
                continue
            begin = (ends[ended - 1] if ended else 0.0) + start_latency
            row = started % path_of.shape[0]
            left[slot] = warps
            phases[slot] = 0
            coming[slot] = 0.0
            for b in range(_BARRIERS):
                arrived[slot, b] = 0
                latest[slot, b] = 0.0
            for k in range(warps):
                w = slot * warps + k
                path[w] = path_of[row, k]
                leader[w] = leads[row, k]
                at[w] = 0
                age[w] = born
                born += 1
                for b in range(6):
                    barrier[w, b] = 0.0
                    slow[w, b] = False
                copies_from[w] = copies_to[w] = products_from[w] = products_to[w] = 0
                copying[w] = multiplying[w] = 0.0
                waits_at[w] = -1
                phase_of[w] = 0
                time[w] = begin
                size = _push(heap, size, time, age, w)
            started += 1
        finished_before = ended

        while size and ended == finished_before:
            w = heap[0]
            now = time[w]
            code = stream[first[path[w]] + at[w]]
            active = code >= 0
            i = code if active else -1 - code
            k = kind[i] if active else _NOTHING
            s = w & 3
            # Is its scheduler free, and its unit?
            go = max(now, issue_free[s])
            why = _NOT_SELECTED
            if active:
                if unit[i] == _LSU:
                    if lsu - _QUEUE > go:
                        go = lsu - _QUEUE
                        why = _MIO
                elif unit[i] and k != _GROUP and k != _TENSOR and unit_free[s, unit[i]] > go:
                    go = unit_free[s, unit[i]]
                    why = _MATH
            if go > now:
                lost[i, why] += go - now
                time[w] = go
                _sink(heap, size, time, age)
                continue

            issue_free[s] = now + 1.0
            issued += 1
            lost[i, _SELECTED] += 1.0
            if age[w] == 0:
                when[at[w]] = now
            slot = w // warps
            following = now + stall[i]
            reason = _WAIT
            done = -1.0
            used = -1.0
            long = False
            stays = False
            if k == 0:
                if unit[i]:
                    unit_free[s, unit[i]] = now + cycles[i]
                done = now + latency[i]
                used = now + read_latency
            elif k == _SHARED:
                lsu = max(lsu, now) + cycles[i]
                done = lsu + latency[i]
                used = lsu + read_latency
            elif k in (_LOAD, _COPY, _ATOMIC):
                lsu = max(lsu, now) + cycles[i]
                from_l1 += l1_share if k == _LOAD else 0.0
                if from_l1 >= 1.0 and k == _LOAD:
                    from_l1 -= 1.0
                    done = lsu + l1_latency
                else:
                    amount = moved[i] * (loaded_per_byte if k == _LOAD else copied_per_byte)
                    if k == _ATOMIC:
                        amount = moved[i] * stored_per_byte * atomic_factor
                    l2 = max(l2, lsu) + amount / l2_rate
                    memory = max(memory, lsu) + amount * memory_share / memory_rate
                    from_memory += memory_share
                    if from_memory >= 1.0:
                        from_memory -= 1.0
                        done = max(max(l2, memory), lsu) + memory_latency
                    else:
                        done = max(max(l2, memory), lsu) + l2_latency
                used = lsu + read_latency
                long = True
                if k == _COPY:
                    copying[w] = max(copying[w], done)
            elif k == _LOCAL:
                lsu = max(lsu, now) + cycles[i]
                done = lsu + latency[i]
                used = lsu + read_latency
                long = True
            elif k == _STORE:
                lsu = max(lsu, now) + cycles[i]
                amount = moved[i] * stored_per_byte
                l2 = max(l2, lsu) + amount * (atomic_factor if argument[i] else 1.0) / l2_rate
                memory = max(memory, lsu) + amount / memory_rate
                used = max(lsu + read_latency, max(l2, memory) - _STORES)
                done = used
                long = True
            elif k == _GROUP:
                free = max(unit_free[s, _MATRIX], now) + cycles[i]
                unit_free[s, _MATRIX] = free
                multiplying[w] = max(multiplying[w], free + matrix_latency)
                if argument[i]:
                    products[w, products_to[w] % _GROUPS] = multiplying[w]
                    products_to[w] += 1
                    multiplying[w] = 0.0
                done = free
                used = free
            elif k == _GROUP_WAIT:
                while products_to[w] - products_from[w] > argument[i]:
                    following = max(following, products[w, products_from[w] % _GROUPS])
                    products_from[w] += 1
                reason = _PRODUCT
            elif k == _COMMIT:
                copies[w, copies_to[w] % _GROUPS] = copying[w]
                copies_to[w] += 1
                copying[w] = 0.0
                done = now + latency[i]
            elif k == _COPY_WAIT:
                while copies_to[w] - copies_from[w] > argument[i]:
                    following = max(following, copies[w, copies_from[w] % _GROUPS])
                    copies_from[w] += 1
                reason = _LONG
            elif k == _BULK:
                if leader[w]:
                    amount = moved[i] * copied_per_byte
                    l2 = max(l2, now) + amount / l2_rate
                    memory = max(memory, now) + amount * memory_share / memory_rate
                    coming[slot] = max(coming[slot], max(l2, memory) + latency[i])
                    if argument[i]:
                        phase[slot, phases[slot] % _PHASES] = coming[slot]
                        phases[slot] += 1
                        coming[slot] = 0.0
            elif k == _BULK_STORE:
                if leader[w]:
                    amount = moved[i] * stored_per_byte
                    l2 = max(l2, now) + amount * (atomic_factor if argument[i] else 1.0) / l2_rate
                    memory = max(memory, now) + amount / memory_rate
                    copying[w] = max(copying[w], max(now + read_latency, max(l2, memory) - _STORES))
            elif k == _TENSOR:
                if leader[w]:
                    unit_free[0, _MATRIX] = max(unit_free[0, _MATRIX], now) + cycles[i]
            elif k == _TENSOR_COMMIT:
                if leader[w]:
                    phase[slot, phases[slot] % _PHASES] = max(unit_free[0, _MATRIX], now) + matrix_latency
                    phases[slot] += 1
            elif k == _PHASE_WAIT:
                if phase_of[w] < phases[slot]:
                    following = max(following, phase[slot, phase_of[w] % _PHASES])
                    phase_of[w] += 1
                    reason = _PRODUCT
                else:
                    stays = True
                    waits_at[w] = _BARRIERS
            elif k in (_MEET, _ARRIVE):
                b = argument[i]
                arrived[slot, b] += 1
                latest[slot, b] = max(latest[slot, b], following)
                stays = k == _MEET
                if stays:
                    waits_at[w] = b
            if done >= 0.0 and write[i] >= 0:
                b = write[i]
                if done > barrier[w, b]:
                    barrier[w, b] = done
                    slow[w, b] = long
            if used >= 0.0 and read[i] >= 0:
                b = read[i]
                if used > barrier[w, b]:
                    barrier[w, b] = used
                    slow[w, b] = long

            at[w] += 1
            time[w] = following
            over = at[w] >= length[path[w]]
            if over or stays:
                size -= 1
                heap[0] = heap[size]
                if size:
                    _sink(heap, size, time, age)
            else:
                _wake(w, now, following, reason, stall[i], time, barrier, slow, wait, stream, first, path, at, lost)
                _sink(heap, size, time, age)

            # Whoever waited for this goes on.
            if k in (_MEET, _ARRIVE):
                b = argument[i]
                needed = group[i] if group[i] else warps
                if arrived[slot, b] >= min(needed, warps):
                    arrived[slot, b] = 0
                    release = latest[slot, b] + barrier_latency
                    latest[slot, b] = 0.0
                    for other in range(slot * warps, slot * warps + warps):
                        if waits_at[other] == b:
                            size = _release(
                                other,
                                release,
                                heap,
                                size,
                                time,
                                age,
                                waits_at,
                                barrier,
                                slow,
                                wait,
                                stream,
                                first,
                                path,
                                at,
                                length,
                                lost,
                                _BARRIER,
                            )
            elif k in (_BULK, _TENSOR_COMMIT) and leader[w]:
                for other in range(slot * warps, slot * warps + warps):
                    if waits_at[other] == _BARRIERS and phase_of[other] < phases[slot]:
                        ready = phase[slot, phase_of[other] % _PHASES]
                        phase_of[other] += 1
                        size = _release(
                            other,
                            ready,
                            heap,
                            size,
                            time,
                            age,
                            waits_at,
                            barrier,
                            slow,
                            wait,
                            stream,
                            first,
                            path,
                            at,
                            length,
                            lost,
                            _PRODUCT,
                        )
            if over:
                left[slot] -= 1
                if left[slot] == 0:
                    ends[ended] = now
                    ended += 1

        if ended == total:
            break
        if not size and ended == finished_before:
            # Warps that wait for what no instruction here does, such as arrivals from other programs, go on.
            moved_on = False
            for w in range(slots):
                if waits_at[w] >= 0:
                    moved_on = True
                    if waits_at[w] < _BARRIERS:
                        arrived[w // warps, waits_at[w]] = 0
                    size = _release(
                        w,
                        time[w],
                        heap,
                        size,
                        time,
                        age,
                        waits_at,
                        barrier,
                        slow,
                        wait,
                        stream,
                        first,
                        path,
                        at,
                        length,
                        lost,
                        _BARRIER,
                    )
            if not moved_on:
                raise RuntimeError("no warp of the simulation can go on")
    return ends, max(ends[total - 1], l2, memory), issued, lost, when


@njit(cache=True)
def _wake(
    w: int, now: float, following: float, reason: int, stalls: float, time: Any, barrier: Any, slow: Any, wait: Any,
    stream: Any, first: Any, path: Any, at: Any, lost: Any,
) -> None:  # fmt: skip
    """When the warp's next instruction could issue, for all that it waits for itself, and what that was."""
    code = stream[first[path[w]] + at[w]]
    i = code if code >= 0 else -1 - code
    lost[i, _WAIT] += max(0.0, stalls - 1.0)
    lost[i, reason] += max(0.0, following - now - stalls)
    mask = wait[i]
    ready = following
    why = _SHORT
    if mask:
        for b in range(6):
            if mask >> b & 1 and barrier[w, b] > ready:
                ready = barrier[w, b]
                why = _LONG if slow[w, b] else _SHORT
    lost[i, why] += ready - following
    time[w] = ready


@njit(cache=True)
def _release(
    w: int, when: float, heap: Any, size: int, time: Any, age: Any, waits_at: Any, barrier: Any, slow: Any, wait: Any,
    stream: Any, first: Any, path: Any, at: Any, length: Any, lost: Any, reason: int,
) -> int:  # fmt: skip
    """A warp that waited outside the heap comes back into it, unless it has nothing more to do."""
    waits_at[w] = -1
    if at[w] >= length[path[w]]:
        return size
    before = time[w]
    when = max(when, before)
    code = stream[first[path[w]] + at[w]]
    i = code if code >= 0 else -1 - code
    lost[i, reason] += when - before
    _wake(w, when, when, reason, 1.0, time, barrier, slow, wait, stream, first, path, at, lost)
    return _push(heap, size, time, age, w)
