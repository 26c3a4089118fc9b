"""What glibc's malloc holds while it serves the blocks of a step, and the small objects of the runtime among them.

Simulated event by event, as `allocator` is: ``b + 1`` allocates block b, ``-(b + 1)`` frees it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .allocator import Held, round_up
from .blocks import (
    ADDRESS,
    AFTER,
    BEFORE,
    IS_FREE,
    LEAD,
    LENGTH,
    NONE,
    discard,
    list_free,
    make_block,
    mark_free,
    merge_free,
    new_blocks,
    pick,
    put_free,
    split,
)
from .table import I4, I8

__all__ = ["MALLOC", "PAGE", "PINNED_MALLOC", "SMALL", "STEP_MALLOC", "Malloc", "glibc_malloc"]

PAGE = 4096
# The size of a small object: not a tensor, but what a runtime keeps beside tensors.
SMALL = -1


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


# Entries of glibc's state: start and end of the top chunk (the end is that of the heap), the chunk below it, the end of
# what was ever written, the trim threshold, how many small chunks are in the fast bins and in the thread's cache, how
# many small ones the cache has from before, and from `_CACHED_OF` on how many of each length, in units of 16 bytes.
_TOP, _END, _LAST, _TOUCHED, _TRIM, _FAST, _CACHED, _BEFORE, _CACHED_OF = range(9)
_FAST_MOST = 128  # global_max_fast
_CACHE_ROOM = 7  # chunks of a length that the thread's cache takes (tcache_count)
_SHORT = 2  # the shortest length of a chunk, in units
_LENGTHS = _FAST_MOST // 16 - _SHORT + 1  # of small chunks, which objects take
_CACHE = _LENGTHS * _CACHE_ROOM  # entries of `fast` before the fast bins: cached small chunks
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
    size. The cache is full when the events begin, of chunks from elsewhere; objects take those first, of each length in
    turn.

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
    state = np.full(_CACHED_OF + _FAST_MOST // 16 + 1, _CACHE_ROOM)
    state[:_CACHED_OF] = 0
    state[_LAST], state[_TRIM], state[_BEFORE] = NONE, rules.trim_threshold, _CACHE
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
            mapped_resident -= round_up(size[b], PAGE)
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
                map_of[b] = round_up(need + 8, PAGE)
                where[b] = next_map + rules.alignment
                next_map += map_of[b]
                mapped += map_of[b]
                mapped_resident += round_up(size[b], PAGE)
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
        state[_END] += round_up(need + top_pad + 32 - top, PAGE)
    s = make_block(block, number, state[_TOP], need, state[_LAST], NONE)
    state[_TOP] += need
    state[_LAST] = s
    return s


@njit(cache=True, inline="always")
def _has_room(state: I8, length: int) -> bool:
    """Whether the thread's cache takes a small chunk of `length` bytes."""
    return bool(state[_CACHED_OF + (length >> 4)] < _CACHE_ROOM)


@njit(cache=True, inline="always")
def _take_small(block: I8, state: I8, fast: I8) -> int:
    """The last small chunk that was left or freed, of the cache or else of the fast bins; `NONE`: from elsewhere."""
    if state[_CACHED] > 0:
        state[_CACHED] -= 1
        s = int(fast[state[_CACHED]])
        state[_CACHED_OF + (block[s, LENGTH] >> 4)] -= 1
        return s
    if state[_BEFORE] > 0:
        state[_BEFORE] -= 1
        state[_CACHED_OF + _SHORT + state[_BEFORE] % _LENGTHS] -= 1
        return NONE
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
    """Free any chunk; returns the bytes of what it became part of, 0 if it stays by itself.

    The thread's cache stays full of longer ones: neither an object nor an aligned request takes any.
    """
    if block[s, LENGTH] <= _FAST_MOST:
        _put_small(block, state, fast, s)
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
