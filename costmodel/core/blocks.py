"""Blocks of an address range, side by side: split, merged with free neighbours, found by best fit.

Free blocks are kept in classes of length, 32 to a power of two: the leading bits of the length as a float. A class is a
list in the order of length, then address; a bitmap of the classes of each power, and one of the powers, say which have
blocks. So a block is found, put and taken in a few steps, however many there are.

Three arrays hold it all; they are passed one by one, because taking an array out of a tuple costs numba two atomic
operations, more than all else here.

* ``block`` (m, 8): a row a block, columns `ADDRESS`, `LENGTH`, `BEFORE` and `AFTER` (rows of the neighbours, `NONE` at
  an end of a segment), `IS_FREE`, the links of its class's list, and the class, `NONE` for a free block that is in no
  list; eight, so that a row is a cache line. A block that somebody has is in no list: its first link is `LEAD`, bytes
  before it that are free, too few to be picked and without a row; what is before them is never free.
* ``head`` (1664,): the first block of each class, `NONE` if it has none.
* ``number`` (56,): rows ever used, the first of the chain of emptied rows (linked by `AFTER`), the shortest length that
  can be picked, the bitmap of powers, and those of the classes of each power.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import I4, I8

__all__ = [
    "ADDRESS", "AFTER", "BEFORE", "IS_FREE", "LEAD", "LENGTH", "NONE",
    "discard", "free_segments", "list_free", "make_block", "mark_free", "merge_free", "new_blocks", "pick", "put_free",
    "split", "take_free",
]  # fmt: skip

NONE = -1
ADDRESS, LENGTH, BEFORE, AFTER, IS_FREE, _NEXT, _PREVIOUS, _CLASS = range(8)
LEAD = _NEXT
_USED, _EMPTIED, _LEAST, _POWERS, _CLASSES = range(5)
_MOST_POWER = 52
# A float64: 52 bits of mantissa below an exponent with this bias.
_MANTISSA, _BIAS = 52, 1023
_FINE = 5  # bits of the mantissa that tell classes of a power apart


@njit(cache=True, inline="always")
def new_blocks(m: int, least: int) -> tuple[I8, I4, I8]:
    """No blocks, and room for `m`; free ones shorter than `least` are only merged, never picked."""
    number = np.zeros(_CLASSES + _MOST_POWER, np.int64)
    number[_EMPTIED], number[_LEAST] = NONE, least
    return np.empty((m, 8), np.int64), np.full(_MOST_POWER << _FINE, NONE, np.int32), number


@njit(cache=True, inline="always")
def make_block(block: I8, number: I8, address: int, length: int, before: int, after: int) -> int:
    """A block that somebody has, between two neighbours; returns its row."""
    b = number[_EMPTIED]
    if b != NONE:
        number[_EMPTIED] = block[b, AFTER]
    else:
        b = number[_USED]
        number[_USED] += 1
    block[b, ADDRESS], block[b, LENGTH] = address, length
    block[b, BEFORE], block[b, AFTER] = before, after
    block[b, IS_FREE], block[b, LEAD] = 0, 0
    if before != NONE:
        block[before, AFTER] = b
    if after != NONE:
        block[after, BEFORE] = b
    return int(b)


@njit(cache=True, inline="always")
def discard(block: I8, number: I8, b: int) -> None:
    """Forget a block that others have absorbed: its row will be used again."""
    block[b, AFTER] = number[_EMPTIED]
    number[_EMPTIED] = b


@njit(cache=True, inline="always")
def split(block: I8, number: I8, b: int, length: int) -> int:
    """Cut what is beyond the first `length` bytes off a block; returns the row of the rest."""
    rest = make_block(block, number, block[b, ADDRESS] + length, block[b, LENGTH] - length, b, block[b, AFTER])
    block[b, LENGTH] = length
    return rest


@njit(cache=True, inline="always")
def merge_free(block: I8, head: I4, number: I8, b: int) -> None:
    """Grow a block over its lead, its free neighbours and the lead of the next one."""
    p, q = block[b, BEFORE], block[b, AFTER]
    lead = block[b, LEAD]
    block[b, ADDRESS] -= lead
    block[b, LENGTH] += lead
    block[b, LEAD] = 0
    if p != NONE and block[p, IS_FREE]:
        take_free(block, head, number, p)
        block[b, ADDRESS] = block[p, ADDRESS]
        block[b, LENGTH] += block[p, LENGTH]
        block[b, BEFORE] = block[p, BEFORE]
        if block[p, BEFORE] != NONE:
            block[block[p, BEFORE], AFTER] = b
        discard(block, number, p)
    if q == NONE:
        return
    if block[q, IS_FREE]:
        take_free(block, head, number, q)
        block[b, LENGTH] += block[q, LENGTH]
        block[b, AFTER] = block[q, AFTER]
        if block[q, AFTER] != NONE:
            block[block[q, AFTER], BEFORE] = b
        discard(block, number, q)
    else:
        block[b, LENGTH] += block[q, LEAD]
        block[q, LEAD] = 0


@njit(cache=True, inline="always")
def _class_of(length: int) -> int:
    """Class of a length from 1 to 2^52; it grows with the length.

    >>> _class_of(1), _class_of(64) - _class_of(32), _class_of(1023) == _class_of(1008)
    (0, 32, True)
    """
    return int((np.float64(length).view(np.int64) >> (_MANTISSA - _FINE)) - (_BIAS << _FINE))


@njit(cache=True, inline="always")
def _lowest(bits: int) -> int:
    """Position of the lowest bit that is set."""
    return int((np.float64(bits & -bits).view(np.int64) >> _MANTISSA) - _BIAS)


@njit(cache=True, inline="always")
def put_free(block: I8, head: I4, number: I8, b: int) -> None:
    """Put a block among the free ones."""
    mark_free(block, b)
    list_free(block, head, number, b)


@njit(cache=True, inline="always")
def mark_free(block: I8, b: int) -> None:
    """Say that a block is free: its neighbours may merge with it, but it is not picked before `list_free`."""
    block[b, IS_FREE], block[b, _CLASS] = 1, NONE


@njit(cache=True, inline="always")
def list_free(block: I8, head: I4, number: I8, b: int) -> None:
    """Put a block that was only marked among those that can be picked; nothing if it has merged since, or is short."""
    length, address = block[b, LENGTH], block[b, ADDRESS]
    if length < number[_LEAST] or not block[b, IS_FREE] or block[b, _CLASS] != NONE:
        return
    c = _class_of(length)
    block[b, _CLASS] = c
    before, after = NONE, int(head[c])
    if after == NONE:
        number[_POWERS] |= 1 << (c >> _FINE)
        number[_CLASSES + (c >> _FINE)] |= 1 << (c & 31)
    while after != NONE and (
        block[after, LENGTH] < length or (block[after, LENGTH] == length and block[after, ADDRESS] < address)
    ):
        before, after = after, int(block[after, _NEXT])
    block[b, _PREVIOUS], block[b, _NEXT] = before, after
    if before == NONE:
        head[c] = b
    else:
        block[before, _NEXT] = b
    if after != NONE:
        block[after, _PREVIOUS] = b


@njit(cache=True, inline="always")
def take_free(block: I8, head: I4, number: I8, b: int) -> None:
    """Take a block from the free ones."""
    c, before, after = block[b, _CLASS], block[b, _PREVIOUS], block[b, _NEXT]
    block[b, IS_FREE], block[b, LEAD] = 0, 0
    if c == NONE:
        return
    if after != NONE:
        block[after, _PREVIOUS] = before
    if before != NONE:
        block[before, _NEXT] = after
        return
    head[c] = after
    if after == NONE:
        number[_CLASSES + (c >> _FINE)] ^= 1 << (c & 31)
        if number[_CLASSES + (c >> _FINE)] == 0:
            number[_POWERS] ^= 1 << (c >> _FINE)


@njit(cache=True, inline="always")
def pick(block: I8, head: I4, number: I8, length: int) -> int:
    """Take the best fit: the smallest free block of at least `length` bytes, the lowest of those; `NONE` if none is."""
    c = _class_of(length)
    b = int(head[c])
    while b != NONE and block[b, LENGTH] < length:
        b = int(block[b, _NEXT])
    if b == NONE:
        power = c >> _FINE
        classes = number[_CLASSES + power] & (-2 << (c & 31))
        if classes == 0:
            powers = number[_POWERS] & (-2 << power)
            if powers == 0:
                return NONE
            power = _lowest(powers)
            classes = number[_CLASSES + power]
        b = int(head[(power << _FINE) + _lowest(classes)])
    take_free(block, head, number, b)
    return b


@njit(cache=True)
def free_segments(block: I8, head: I4, number: I8) -> int:
    """Discard every segment that is one free block; returns the bytes they had."""
    given = 0
    for c in range(len(head)):
        b = int(head[c])
        while b != NONE:
            after = int(block[b, _NEXT])
            if block[b, BEFORE] == NONE and block[b, AFTER] == NONE:
                given += int(block[b, LENGTH])
                take_free(block, head, number, b)
                discard(block, number, b)
            b = after
    return given
