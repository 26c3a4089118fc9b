"""What an allocator holds while it serves the blocks of a step: torch's caching allocator on CUDA, and glibc malloc.

Both are simulated event by event: ``b + 1`` allocates block b, ``-(b + 1)`` frees it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .blocks import (
    ADDRESS,
    AFTER,
    BEFORE,
    IS_FREE,
    LEAD,
    LENGTH,
    NONE,
    discard,
    free_segments,
    list_free,
    make_block,
    mark_free,
    merge_free,
    new_blocks,
    pick,
    put_free,
    split,
    take_free,
)
from .table import I4, I8

__all__ = [
    "CACHING",
    "EXPANDABLE",
    "MALLOC",
    "PAGE",
    "PINNED_MALLOC",
    "SMALL",
    "STEP_MALLOC",
    "Caching",
    "Held",
    "Malloc",
    "caching_allocator",
    "glibc_malloc",
]

PAGE = 4096
# The size of a small object: not a tensor, but what a runtime keeps beside tensors.
SMALL = -1


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


class Malloc(NamedTuple):
    """Constants of glibc malloc's main arena (glibc 2.36 malloc.c, 64 bit), bytes.

    Attributes:
        mmap_threshold: a request of at least this that no free chunk serves gets a mapping of its own.
        dynamic: freeing a mapping raises the threshold to its size, and the trim threshold to twice that.
        mmap_threshold_max: no further than this.
        trim_threshold: a top of at least this is given back, down to `top_pad`.
        top_pad: taken from the system beyond a request.
        alignment: of every block; torch asks `posix_memalign` for 64.
    """

    mmap_threshold: int = 128 << 10
    dynamic: bool = True
    mmap_threshold_max: int = 32 << 20
    trim_threshold: int = 128 << 10
    top_pad: int = 128 << 10
    alignment: int = 64


MALLOC = Malloc()
# What it has become when a model is built: importing torch and a model's library freed a mapping of 1.9 MB (measured
# with mallinfo2 in a fresh process: the least request that is mapped; torch alone 1.0 MB).
STEP_MALLOC = Malloc(mmap_threshold=1_958_912, trim_threshold=2 * 1_958_912)
# Nothing is mapped and nothing trimmed: what latency is measured under (measure/latency.py, `pinned_allocator`).
PINNED_MALLOC = Malloc(mmap_threshold=1 << 62, dynamic=False, trim_threshold=1 << 40, top_pad=64 << 20)


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
            need = max(_round_up(size[b], rules.round), rules.round)
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
def _round_up(n: int, unit: int) -> int:
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
        return _round_up(need, rules.small_segment if is_small else rules.large_segment)
    if is_small:
        return rules.small_segment
    return rules.large_segment if need < rules.large_below else _round_up(need, rules.round_segment)


@njit(cache=True)
def _give_back(block: I8, head: I4, number: I8, end: I8, s: int) -> None:
    """Free a block of one pool."""
    merge_free(block, head, number, s)
    put_free(block, head, number, s)
    if end[1] != NONE and block[s, AFTER] == NONE:
        end[1] = s


# Entries of glibc's state: start and end of the top chunk (the end is that of the heap), the chunk below it, the end of
# what was ever written, the trim threshold, how many small chunks are in the fast bins and in the thread's cache, and
# from `_CACHED_OF` on how many the cache has of each length, in units of 16 bytes.
_TOP, _END, _LAST, _TOUCHED, _TRIM, _FAST, _CACHED, _CACHED_OF = range(8)
_FAST_MOST = 128  # global_max_fast
_CACHE_MOST, _CACHE_ROOM = 1040, 7  # chunks that the thread's cache takes, and how many of a length (tcache_count)
_CACHE = (_FAST_MOST // 16 + 1) * _CACHE_ROOM  # entries of `fast` before the fast bins: cached chunks that objects take
_LARGE = 1024  # a request of at least this empties the fast bins
_BIG = 1 << 16  # as does a free of at least this (FASTBIN_CONSOLIDATION_THRESHOLD), which may trim as well


@njit(cache=True)
def glibc_malloc(event: I8, size: I8, rules: Malloc) -> Held:
    """Serve `event` as glibc's main arena serves `posix_memalign`, `malloc` and `free`.

    Free chunks coalesce with their neighbours and the best fit is taken, as from the sorted large bins; the heap
    grows by brk; what is mapped lies above 2^46 in this model.

    Small chunks matter to tensors: aligning asks for 112 bytes more than a chunk, and what is left of them before and
    behind it goes to the thread's cache, seven of a length, where it never merges, or else to a fast bin, which merges
    with its neighbours when a large request comes. An object takes the last small chunk that was left (a block of size
    `SMALL`; none if there is none). Either keeps the hole that the tensor leaves too small for the next one of its
    size.

    Args:
        event: (e,) signed block numbers.
        size: (b,) bytes of each block; a block of 0 bytes takes nothing.
        rules: constants.

    Returns:
        `Held`; addresses are of the block's bytes, from the start of the heap.
    """
    e = event.shape[0]
    # no request is shorter than its least chunk and the room to align in
    block, head, number = new_blocks(4 * e + 8, 32 + rules.alignment + 48)
    state = np.zeros(_CACHED_OF + _CACHE_MOST // 16 + 1, np.int64)
    state[_LAST], state[_TRIM] = NONE, rules.trim_threshold
    fast = np.empty(_CACHE + 4 * e + 8, np.int64)
    # What the last chunk left of a free one: listed before the next search, because until then its neighbour, the end
    # of what was aligned, has mostly merged with it.
    left = NONE
    # What aligning leaves before and behind a chunk are small ones until the next large request or free, which is most
    # often the next event, so they have rows only if the cache takes them or something asks for them: the `LEAD` of
    # `led` before it, and behind it `spare` bytes of `left`, or of the top where there is none.
    led, spare = NONE, 0
    mapped, mapped_resident, next_map = np.int64(0), np.int64(0), np.int64(1) << 46
    mmap_threshold = rules.mmap_threshold
    row_of, where = np.full(size.shape[0], NONE), np.full(size.shape[0], NONE)
    map_of = np.zeros(size.shape[0], np.int64)
    reserved, resident = np.zeros(e + 1, np.int64), np.zeros(e + 1, np.int64)
    for i in range(e):
        b = abs(event[i]) - 1
        if (led != NONE or spare > 0) and size[b] != 0 and map_of[b] == 0:
            merge = _empties_fast(block, size[b], event[i], row_of[b], rules.alignment)
            if led != NONE and (not merge or _has_room(state, block[led, LEAD])):
                _small_of_lead(block, number, state, fast, led)
            if spare > 0 and (not merge or _has_room(state, spare)):
                left = _small_of_spare(block, number, state, fast, left, spare)
            led, spare = NONE, 0
        if size[b] == SMALL:
            if event[i] > 0:
                row_of[b] = _take_small(block, state, fast)
            elif row_of[b] != NONE:
                _put_small(block, state, fast, row_of[b])
        elif event[i] < 0 and map_of[b] > 0:
            mapped -= map_of[b]
            mapped_resident -= _round_up(size[b], PAGE)
            if rules.dynamic and mmap_threshold < map_of[b] <= rules.mmap_threshold_max:
                mmap_threshold = map_of[b]
                state[_TRIM] = 2 * map_of[b]
            map_of[b] = 0
        elif event[i] < 0 and size[b] > 0:
            if _put_chunk(block, head, number, state, fast, row_of[b]) >= _BIG:
                _empty_fast(block, head, number, state, fast)
                _trim(state, rules.top_pad)
        elif size[b] > 0:
            chunk = max((size[b] + 8 + 15) & -16, 32)
            need = chunk + rules.alignment + 48  # room to align in
            if need >= _LARGE:
                _empty_fast(block, head, number, state, fast)
            if left != NONE:
                list_free(block, head, number, left)
                left = NONE
            s = pick(block, head, number, need)
            if s == NONE and state[_END] - state[_TOP] < need + 32 and need >= mmap_threshold:
                map_of[b] = _round_up(need + 8, PAGE)
                where[b] = next_map + rules.alignment
                next_map += map_of[b]
                mapped += map_of[b]
                mapped_resident += _round_up(size[b], PAGE)
            else:
                if s == NONE:
                    s = _cut_top(block, number, state, need, rules.top_pad)
                    led = _lead_off(block, s, rules.alignment)
                    spare = block[s, LENGTH] - chunk
                    if spare > 32:
                        block[s, LENGTH] = chunk
                        state[_TOP] -= spare
                    else:
                        spare = 0
                elif block[s, LENGTH] >= need + 32:
                    whole = block[s, LENGTH]
                    led = _lead_off(block, s, rules.alignment)
                    spare = need - (whole - block[s, LENGTH]) - chunk
                    spare = spare if spare > 32 else 0
                    left = split(block, number, s, chunk if spare > 0 else block[s, LENGTH] - (whole - need))
                    mark_free(block, left)
                else:
                    if _lead_off(block, s, rules.alignment) != NONE:
                        _small_of_lead(block, number, state, fast, s)
                    _rest_off(block, head, number, state, fast, s, chunk)
                row_of[b] = s
                where[b] = block[s, ADDRESS] + 16
                state[_TOUCHED] = max(state[_TOUCHED], block[s, ADDRESS] + chunk)
        reserved[i + 1] = state[_END] + mapped
        resident[i + 1] = state[_TOUCHED] + mapped_resident
    return Held(where, reserved, resident, NONE)


@njit(cache=True, inline="always")
def _empties_fast(block: I8, size: int, event: int, s: int, alignment: int) -> bool:
    """Whether an event merges the small chunks before all else: a large request, or the free of a large chunk."""
    if size == SMALL:
        return False
    if event < 0:
        return bool(block[s, LENGTH] >= _BIG)
    return max((size + 8 + 15) & -16, 32) + alignment + 48 >= _LARGE


@njit(cache=True, inline="always")
def _small_of_spare(block: I8, number: I8, state: I8, fast: I8, left: int, spare: int) -> int:
    """The small chunk that aligning left gets a row, off the start of `left` or of the top; returns what is left."""
    if left == NONE:
        s = make_block(block, number, state[_TOP], spare, state[_LAST], NONE)
        state[_TOP] += spare
        state[_LAST] = s
        _put_small(block, state, fast, s)
        return NONE
    rest = split(block, number, left, spare)
    block[left, IS_FREE] = 0
    mark_free(block, rest)
    _put_small(block, state, fast, left)
    return rest


@njit(cache=True, inline="always")
def _lead_off(block: I8, s: int, alignment: int) -> int:
    """What is before the first aligned address of a chunk becomes its lead; returns the chunk, `NONE` if nothing is."""
    lead = -(block[s, ADDRESS] + 16) & (alignment - 1)
    if lead == 0:
        return NONE
    if lead < 32:  # no chunk is that short
        lead += alignment
    block[s, ADDRESS] += lead
    block[s, LENGTH] -= lead
    block[s, LEAD] = lead
    return s


@njit(cache=True, inline="always")
def _small_of_lead(block: I8, number: I8, state: I8, fast: I8, s: int) -> None:
    """The lead of a chunk gets a row, as a small chunk."""
    lead = block[s, LEAD]
    block[s, LEAD] = 0
    _put_small(block, state, fast, make_block(block, number, block[s, ADDRESS] - lead, lead, block[s, BEFORE], s))


@njit(cache=True, inline="always")
def _rest_off(block: I8, head: I4, number: I8, state: I8, fast: I8, s: int, chunk: int) -> None:
    """What is behind an aligned chunk is given back."""
    if block[s, LENGTH] > chunk + 32:
        rest = split(block, number, s, chunk)
        _move_last(state, s, rest)
        _put_chunk(block, head, number, state, fast, rest)


@njit(cache=True, inline="always")
def _move_last(state: I8, s: int, rest: int) -> None:
    """After a split, the rest may be the chunk below the top."""
    if state[_LAST] == s:
        state[_LAST] = rest


@njit(cache=True, inline="always")
def _cut_top(block: I8, number: I8, state: I8, need: int, top_pad: int) -> int:
    """A chunk off the top, which grows if it is too small."""
    top = state[_END] - state[_TOP]
    if top < need + 32:
        state[_END] += _round_up(need + top_pad + 32 - top, PAGE)
    s = make_block(block, number, state[_TOP], need, state[_LAST], NONE)
    state[_TOP] += need
    state[_LAST] = s
    return s


@njit(cache=True, inline="always")
def _has_room(state: I8, length: int) -> bool:
    """Whether the thread's cache takes a chunk of `length` bytes."""
    return bool(length <= _CACHE_MOST and state[_CACHED_OF + (length >> 4)] < _CACHE_ROOM)


@njit(cache=True, inline="always")
def _take_small(block: I8, state: I8, fast: I8) -> int:
    """The last small chunk that was left or freed, of the cache or else of the fast bins; `NONE` if there is none."""
    if state[_CACHED] > 0:
        state[_CACHED] -= 1
        s = int(fast[state[_CACHED]])
        state[_CACHED_OF + (block[s, LENGTH] >> 4)] -= 1
        return s
    if state[_FAST] == 0:
        return NONE
    state[_FAST] -= 1
    return int(fast[_CACHE + state[_FAST]])


@njit(cache=True, inline="always")
def _put_small(block: I8, state: I8, fast: I8, s: int) -> None:
    """Free a small chunk; to its neighbours it is still taken."""
    if _has_room(state, block[s, LENGTH]):
        state[_CACHED_OF + (block[s, LENGTH] >> 4)] += 1
        fast[state[_CACHED]] = s
        state[_CACHED] += 1
    else:
        fast[_CACHE + state[_FAST]] = s
        state[_FAST] += 1


@njit(cache=True, inline="always")
def _put_chunk(block: I8, head: I4, number: I8, state: I8, fast: I8, s: int) -> int:
    """Free any chunk; returns the bytes of what it became part of, 0 if it stays by itself."""
    if block[s, LENGTH] <= _FAST_MOST:
        _put_small(block, state, fast, s)
        return 0
    if _has_room(state, block[s, LENGTH]):  # for good: neither an object nor an aligned request takes it
        state[_CACHED_OF + (block[s, LENGTH] >> 4)] += 1
        return 0
    return _free_chunk(block, head, number, state, s)


@njit(cache=True, inline="always")
def _empty_fast(block: I8, head: I4, number: I8, state: I8, fast: I8) -> None:
    """Merge what is in the fast bins with its neighbours (malloc_consolidate)."""
    for j in range(state[_FAST]):
        _free_chunk(block, head, number, state, fast[_CACHE + j])
    state[_FAST] = 0


@njit(cache=True, inline="always")
def _free_chunk(block: I8, head: I4, number: I8, state: I8, s: int) -> int:
    """Give a chunk back: it grows over its free neighbours, or becomes part of the top; bytes of what it became."""
    merge_free(block, head, number, s)
    if block[s, AFTER] == NONE:
        state[_TOP], state[_LAST] = block[s, ADDRESS], block[s, BEFORE]
        if state[_LAST] != NONE:
            block[state[_LAST], AFTER] = NONE
        discard(block, number, s)
        return int(state[_END] - state[_TOP])
    put_free(block, head, number, s)
    return int(block[s, LENGTH])


@njit(cache=True, inline="always")
def _trim(state: I8, top_pad: int) -> None:
    """Give what the top has beyond `top_pad` back to the system, if it is more than the threshold."""
    top = state[_END] - state[_TOP]
    if top >= max(state[_TRIM], 1 << 16):
        extra = (top - 33 - top_pad) & -PAGE
        if extra > 0:
            state[_END] -= extra
            state[_TOUCHED] = min(state[_TOUCHED], state[_END])
