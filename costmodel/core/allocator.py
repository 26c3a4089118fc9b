"""What torch's caching allocator on CUDA holds while it serves the blocks of a step; `malloc` is that of a CPU.

Simulated event by event: ``b + 1`` allocates block b, ``-(b + 1)`` frees it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .blocks import (
    ADDRESS,
    AFTER,
    IS_FREE,
    LENGTH,
    NONE,
    free_segments,
    make_block,
    merge_free,
    new_blocks,
    pick,
    put_free,
    split,
    take_free,
)
from .table import I4, I8

__all__ = ["CACHING", "EXPANDABLE", "Caching", "Held", "caching_allocator", "round_up"]


class Held(NamedTuple):
    """What an allocator made of e events on b blocks.

    Attributes:
        address: (b,) where each block was last put, -1 if it never was; blocks that live together never overlap.
        reserved: (e + 1,) bytes that the allocator holds from the system: before the first and after each event.
        resident: (e + 1,) bytes of `reserved` that were ever written and not given back.
        failed: the event that found no memory, -1 if all were served; entries after it repeat its.
    """

    address: I8
    reserved: I8
    resident: I8
    failed: int


class Caching(NamedTuple):
    """Constants of torch's CUDA caching allocator (c10/cuda/CUDACachingAllocator, torch 2.13), bytes.

    Attributes:
        round: sizes are rounded up to a multiple of this.
        small: blocks up to this come from the pool of small ones.
        small_segment: what the small pool takes from the driver at once.
        large_below: larger blocks below this share segments of `large_segment`.
        large_segment: see above.
        round_segment: other segments are a multiple of this.
        expandable: segments grow in place by `small_segment` or `large_segment`, and any rest is split off.
    """

    round: int = 512
    small: int = 1 << 20
    small_segment: int = 2 << 20
    large_below: int = 10 << 20
    large_segment: int = 20 << 20
    round_segment: int = 2 << 20
    expandable: bool = False


CACHING = Caching()
EXPANDABLE = Caching(expandable=True)


@njit(cache=True)
def caching_allocator(event: I8, size: I8, rules: Caching, capacity: int) -> Held:
    """Serve `event` by the rules of torch's caching allocator.

    Args:
        event: (e,) signed block numbers.
        size: (b,) bytes of each block; a block of 0 bytes takes nothing.
        rules: constants.
        capacity: bytes that the device has for this; when they run out, free segments are given back and the request
            is tried again, as torch does; 0 is no limit. (Expandable segments give back nothing here.)

    Returns:
        `Held`; here all that is reserved is resident.
    """
    e = event.shape[0]
    # small and large blocks are two worlds; each has an address range of its own
    small, small_head, small_number = new_blocks(2 * e + 2, rules.round)
    large, large_head, large_number = new_blocks(2 * e + 2, rules.round)
    small_end, large_end = np.array([0, NONE]), np.array([1 << 47, NONE])
    row_of, where = np.full(size.shape[0], NONE), np.full(size.shape[0], NONE)
    reserved = np.zeros(e + 1, np.int64)
    held, failed = np.int64(0), NONE
    for i in range(e):
        b = abs(event[i]) - 1
        if size[b] > 0 and failed == NONE:
            need = max(round_up(size[b], rules.round), rules.round)
            is_small = need <= rules.small
            if event[i] < 0:
                if is_small:
                    _give_back(small, small_head, small_number, small_end, row_of[b])
                else:
                    _give_back(large, large_head, large_number, large_end, row_of[b])
            else:
                room = int(capacity - held) if capacity > 0 else 1 << 62
                for attempt in range(2):
                    if is_small:
                        s, more = _take(small, small_head, small_number, small_end, need, rules, True, room)
                    else:
                        s, more = _take(large, large_head, large_number, large_end, need, rules, False, room)
                    if s != NONE or attempt == 1 or rules.expandable:
                        break
                    given = free_segments(small, small_head, small_number)
                    given += free_segments(large, large_head, large_number)
                    held -= given
                    room += given
                if s == NONE:
                    failed = i
                else:
                    held += more
                    row_of[b] = s
                    where[b] = small[s, ADDRESS] if is_small else large[s, ADDRESS]
        reserved[i + 1] = held
    return Held(where, reserved, reserved, failed)


@njit(cache=True)
def round_up(n: int, unit: int) -> int:
    return (n + unit - 1) // unit * unit


@njit(cache=True)
def _take(
    block: I8, head: I4, number: I8, end: I8, need: int, rules: Caching, is_small: bool, room: int
) -> tuple[int, int]:
    """A block of `need` bytes of one pool, and the bytes that the driver gave for it; `NONE` if it has no `room`.

    `end` is where the pool's addresses end, and the last block of its expandable segment.
    """
    s = pick(block, head, number, need)
    more = 0
    if s == NONE:
        last = end[1]
        grow = last != NONE and block[last, IS_FREE]
        more = _segment(need - (block[last, LENGTH] if grow else 0), is_small, rules)
        if more > room:
            return NONE, 0
        if grow:
            s = last
            take_free(block, head, number, s)
            block[s, LENGTH] += more
        else:
            s = make_block(block, number, end[0], more, last, NONE)
        end[0] += more
        if rules.expandable:
            end[1] = s
    rest = block[s, LENGTH] - need
    if rest >= rules.round if is_small or rules.expandable else rest > rules.small:
        r = split(block, number, s, need)
        put_free(block, head, number, r)
        if end[1] == s:
            end[1] = r
    return s, more


@njit(cache=True)
def _segment(need: int, is_small: bool, rules: Caching) -> int:
    """Bytes that the pool asks the driver for, to serve `need`."""
    if rules.expandable:
        return round_up(need, rules.small_segment if is_small else rules.large_segment)
    if is_small:
        return rules.small_segment
    return rules.large_segment if need < rules.large_below else round_up(need, rules.round_segment)


@njit(cache=True)
def _give_back(block: I8, head: I4, number: I8, end: I8, s: int) -> None:
    """Free a block of one pool."""
    merge_free(block, head, number, s)
    put_free(block, head, number, s)
    if end[1] != NONE and block[s, AFTER] == NONE:
        end[1] = s
