"""Blocks of an address range, side by side: split, merged with free neighbours, found by best fit.

Three arrays hold them; they are passed one by one, because taking an array out of a tuple costs numba two atomic
operations, more than all else here.

* ``block`` (m, 5): a row a block, columns `ADDRESS`, `LENGTH`, `BEFORE` and `AFTER` (rows of the neighbours, `NONE` at
  an end of a segment), `IS_FREE`.
* ``free`` (m,): rows of the free blocks that can be picked, in the order of length, then address.
* ``number`` (4,): rows ever used, pickable free blocks, first of the chain of emptied rows (linked by `AFTER`), and
  the shortest length that can be picked.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import I4, I8

__all__ = [
    "ADDRESS", "AFTER", "BEFORE", "IS_FREE", "LENGTH", "NONE",
    "discard", "make_block", "merge_free", "new_blocks", "pick", "put_free", "split", "take_free",
]  # fmt: skip

NONE = -1
ADDRESS, LENGTH, BEFORE, AFTER, IS_FREE = range(5)


@njit(cache=True, inline="always")
def new_blocks(m: int, least: int) -> tuple[I8, I4, I8]:
    """No blocks, and room for `m`; free ones shorter than `least` are only merged, never picked."""
    return np.empty((m, 5), np.int64), np.empty(m, np.int32), np.array([0, 0, NONE, least], np.int64)


@njit(cache=True, inline="always")
def make_block(block: I8, number: I8, address: int, length: int, before: int, after: int) -> int:
    """A block that somebody has, between two neighbours; returns its row."""
    b = number[2]
    if b != NONE:
        number[2] = block[b, AFTER]
    else:
        b = number[0]
        number[0] += 1
    block[b, ADDRESS], block[b, LENGTH] = address, length
    block[b, BEFORE], block[b, AFTER] = before, after
    block[b, IS_FREE] = 0
    if before != NONE:
        block[before, AFTER] = b
    if after != NONE:
        block[after, BEFORE] = b
    return int(b)


@njit(cache=True, inline="always")
def discard(block: I8, number: I8, b: int) -> None:
    """Forget a block that others have absorbed: its row will be used again."""
    block[b, AFTER] = number[2]
    number[2] = b


@njit(cache=True, inline="always")
def split(block: I8, number: I8, b: int, length: int) -> int:
    """Cut what is beyond the first `length` bytes off a block; returns the row of the rest."""
    rest = make_block(block, number, block[b, ADDRESS] + length, block[b, LENGTH] - length, b, block[b, AFTER])
    block[b, LENGTH] = length
    return rest


@njit(cache=True, inline="always")
def merge_free(block: I8, free: I4, number: I8, b: int) -> None:
    """Grow a block over its free neighbours."""
    p, q = block[b, BEFORE], block[b, AFTER]
    if p != NONE and block[p, IS_FREE]:
        take_free(block, free, number, p)
        block[b, ADDRESS] = block[p, ADDRESS]
        block[b, LENGTH] += block[p, LENGTH]
        block[b, BEFORE] = block[p, BEFORE]
        if block[p, BEFORE] != NONE:
            block[block[p, BEFORE], AFTER] = b
        discard(block, number, p)
    if q != NONE and block[q, IS_FREE]:
        take_free(block, free, number, q)
        block[b, LENGTH] += block[q, LENGTH]
        block[b, AFTER] = block[q, AFTER]
        if block[q, AFTER] != NONE:
            block[block[q, AFTER], BEFORE] = b
        discard(block, number, q)


@njit(cache=True, inline="always")
def _rank(block: I8, free: I4, number: I8, length: int, address: int) -> int:
    """How many free blocks come before (length, address)."""
    low, high = 0, number[1]
    while low < high:
        middle = (low + high) >> 1
        b = free[middle]
        if block[b, LENGTH] < length or (block[b, LENGTH] == length and block[b, ADDRESS] < address):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, inline="always")
def put_free(block: I8, free: I4, number: I8, b: int) -> None:
    """Put a block among the free ones."""
    block[b, IS_FREE] = 1
    if block[b, LENGTH] < number[3]:
        return
    at = _rank(block, free, number, block[b, LENGTH], block[b, ADDRESS])
    for j in range(number[1], at, -1):
        free[j] = free[j - 1]
    free[at] = b
    number[1] += 1


@njit(cache=True, inline="always")
def take_free(block: I8, free: I4, number: I8, b: int) -> None:
    """Take a block from the free ones; its address and length must be those it was put there with."""
    block[b, IS_FREE] = 0
    if block[b, LENGTH] < number[3]:
        return
    number[1] -= 1
    for j in range(_rank(block, free, number, block[b, LENGTH], block[b, ADDRESS]), number[1]):
        free[j] = free[j + 1]


@njit(cache=True, inline="always")
def pick(block: I8, free: I4, number: I8, length: int) -> int:
    """Take the best fit: the smallest free block of at least `length` bytes, the lowest of those; `NONE` if none is."""
    at = _rank(block, free, number, length, -1)
    if at == number[1]:
        return NONE
    b = int(free[at])
    number[1] -= 1
    for j in range(at, number[1]):
        free[j] = free[j + 1]
    block[b, IS_FREE] = 0
    return b
