"""What an allocator holds while it serves the blocks of a step: torch's caching allocator on CUDA, and glibc malloc.

Both are simulated event by event: ``b + 1`` allocates block b, ``-(b + 1)`` frees it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .blocks import NONE, Blocks, best_fit, discard, make_block, merge_free, new_blocks, put_free, split, take_free
from .table import I8

__all__ = [
    "CACHING",
    "EXPANDABLE",
    "MALLOC",
    "PINNED_MALLOC",
    "Caching",
    "Held",
    "Malloc",
    "caching_allocator",
    "glibc_malloc",
]

PAGE = 4096


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
    small, large = new_blocks(2 * e + 2, rules.round), new_blocks(2 * e + 2, rules.round)
    # each pool has an address range of its own, and the last block of it
    end, tail = np.array([0, 1 << 47], np.int64), np.full(2, NONE)
    slot_of, where = np.full(size.shape[0], NONE), np.full(size.shape[0], NONE)
    reserved = np.zeros(e + 1, np.int64)
    held, failed = np.int64(0), NONE
    for i in range(e):
        b = abs(event[i]) - 1
        if size[b] > 0 and failed == NONE:
            need = max(_round_up(size[b], rules.round), rules.round)
            pool = 0 if need <= rules.small else 1
            blocks = small if pool == 0 else large
            if event[i] < 0:
                s = slot_of[b]
                merge_free(blocks, s)
                put_free(blocks, s)
                if rules.expandable and blocks.after[s] == NONE:
                    tail[pool] = s
            else:
                s = best_fit(blocks, need)
                if s != NONE:
                    take_free(blocks, s)
                else:
                    last = tail[pool]
                    grow = rules.expandable and last != NONE and blocks.is_free[last]
                    lacking = need - (blocks.length[last] if grow else 0)
                    take = _segment(lacking, pool, rules)
                    if capacity > 0 and held + take > capacity:
                        held -= _give_back_segments(small, rules) + _give_back_segments(large, rules)
                    if capacity > 0 and held + take > capacity:
                        failed = i
                        reserved[i + 1] = held
                        continue
                    held += take
                    if grow:
                        s = last
                        take_free(blocks, s)
                        blocks.length[s] += take
                    else:
                        s = make_block(blocks, end[pool], take, last if rules.expandable else NONE, NONE)
                        tail[pool] = s
                    end[pool] += take
                rest = blocks.length[s] - need
                if rest >= rules.round if pool == 0 or rules.expandable else rest > rules.small:
                    r = split(blocks, s, need)
                    put_free(blocks, r)
                    if tail[pool] == s:
                        tail[pool] = r
                slot_of[b] = s
                where[b] = blocks.address[s]
        reserved[i + 1] = held
    return Held(where, reserved, reserved, failed)


@njit(cache=True)
def _round_up(n: int, unit: int) -> int:
    return (n + unit - 1) // unit * unit


@njit(cache=True)
def _segment(need: int, pool: int, rules: Caching) -> int:
    """Bytes that the pool asks the driver for, to serve `need`."""
    if rules.expandable:
        return _round_up(need, rules.small_segment if pool == 0 else rules.large_segment)
    if pool == 0:
        return rules.small_segment
    return rules.large_segment if need < rules.large_below else _round_up(need, rules.round_segment)


@njit(cache=True)
def _give_back_segments(blocks: Blocks, rules: Caching) -> int:
    """Return segments that are one free block to the driver; the bytes they had."""
    if rules.expandable:
        return 0
    given, kept = 0, 0
    for j in range(blocks.number[1]):
        s = blocks.free[j]
        if blocks.before[s] == NONE and blocks.after[s] == NONE:
            given += blocks.length[s]
            discard(blocks, s)
        else:
            blocks.free[kept] = s
            kept += 1
    blocks.number[1] = kept
    return given


@njit(cache=True)
def glibc_malloc(event: I8, size: I8, rules: Malloc) -> Held:
    """Serve `event` as glibc's main arena serves `posix_memalign` and `free`.

    Free chunks coalesce with their neighbours and the best fit is taken, as from the sorted large bins; the heap
    grows by brk; what is mapped lies above 2^46 in this model. The caches of chunks below 1 KiB (tcache, fastbins)
    are left out: no tensor that matters is that small.

    Args:
        event: (e,) signed block numbers.
        size: (b,) bytes of each block; a block of 0 bytes takes nothing.
        rules: constants.

    Returns:
        `Held`; addresses are of the block's bytes, from the start of the heap.
    """
    e = event.shape[0]
    # no request is shorter than its least chunk and the room to align in
    blocks = new_blocks(4 * e + 4, 32 + rules.alignment + 48)
    # the top chunk goes from `top` to `heap`; `state` is top, slot of the chunk below it, heap, touched, trim threshold
    state = np.array([0, NONE, 0, 0, rules.trim_threshold], np.int64)
    mapped, mapped_resident, next_map = np.int64(0), np.int64(0), np.int64(1) << 46
    mmap_threshold = rules.mmap_threshold
    slot_of, where = np.full(size.shape[0], NONE), np.full(size.shape[0], NONE)
    map_of = np.zeros(size.shape[0], np.int64)
    reserved, resident = np.zeros(e + 1, np.int64), np.zeros(e + 1, np.int64)
    for i in range(e):
        b = abs(event[i]) - 1
        if event[i] < 0 and map_of[b] > 0:
            mapped -= map_of[b]
            mapped_resident -= _round_up(size[b], PAGE)
            if rules.dynamic and mmap_threshold < map_of[b] <= rules.mmap_threshold_max:
                mmap_threshold = map_of[b]
                state[4] = 2 * map_of[b]
            map_of[b] = 0
        elif event[i] < 0 and size[b] > 0:
            _free_chunk(blocks, state, slot_of[b], rules)
        elif size[b] > 0:
            chunk = max(_round_up(size[b] + 8, 16), 32)
            need = chunk + rules.alignment + 48  # room to align in
            if best_fit(blocks, need) == NONE and state[2] - state[0] < need + 32 and need >= mmap_threshold:
                map_of[b] = _round_up(need + 8, PAGE)
                where[b] = next_map + rules.alignment
                next_map += map_of[b]
                mapped += map_of[b]
                mapped_resident += _round_up(size[b], PAGE)
            else:
                s = _take_chunk(blocks, state, chunk, need, rules)
                slot_of[b] = s
                where[b] = blocks.address[s] + 16
        reserved[i + 1] = state[2] + mapped
        resident[i + 1] = state[3] + mapped_resident
    return Held(where, reserved, resident, NONE)


@njit(cache=True)
def _take_chunk(blocks: Blocks, state: I8, chunk: int, need: int, rules: Malloc) -> int:
    """A chunk of `chunk` bytes, aligned inside `need` bytes from the free ones or the top; the rest is free again."""
    s = best_fit(blocks, need)
    if s != NONE:
        take_free(blocks, s)
        # best fit splits off what is big enough to be a chunk
        if blocks.length[s] >= need + 32:
            put_free(blocks, split(blocks, s, need))
    else:
        if state[2] - state[0] < need + 32:
            state[2] += _round_up(need + rules.top_pad + 32 - (state[2] - state[0]), PAGE)
        s = make_block(blocks, state[0], need, state[1], NONE)
        state[0] += need
        state[1] = s
    lead = -(blocks.address[s] + 16) % rules.alignment
    if 0 < lead < 32:
        lead += rules.alignment
    if lead > 0:
        first, s = s, split(blocks, s, lead)
        if state[1] == first:
            state[1] = s
        _free_chunk(blocks, state, first, rules)
    if blocks.length[s] > chunk + 32:
        rest = split(blocks, s, chunk)
        if state[1] == s:
            state[1] = rest
        _free_chunk(blocks, state, rest, rules)
    state[3] = max(state[3], blocks.address[s] + blocks.length[s])
    return s


@njit(cache=True)
def _free_chunk(blocks: Blocks, state: I8, s: int, rules: Malloc) -> None:
    """Give a chunk back: it grows over its free neighbours, or becomes part of the top, which may be trimmed."""
    merge_free(blocks, s)
    freed = blocks.length[s]
    if blocks.after[s] == NONE:
        state[0], state[1] = blocks.address[s], blocks.before[s]
        if state[1] != NONE:
            blocks.after[state[1]] = NONE
        discard(blocks, s)
        freed = state[2] - state[0]
    else:
        put_free(blocks, s)
    if freed >= 1 << 16 and state[2] - state[0] >= state[4]:
        extra = (state[2] - state[0] - 33 - rules.top_pad) // PAGE * PAGE
        if extra > 0:
            state[2] -= extra
            state[3] = min(state[3], state[2])
