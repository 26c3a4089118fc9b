"""Blocks of an address range, side by side: split, merged with free neighbours, found by best fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from .table import I4, I8

__all__ = [
    "NONE",
    "Blocks",
    "best_fit",
    "discard",
    "make_block",
    "merge_free",
    "new_blocks",
    "put_free",
    "split",
    "take_free",
]

NONE = -1


class Blocks(NamedTuple):
    """Up to m blocks, by slot.

    Attributes:
        address, length: (m,) bytes.
        before, after: (m,) slots of the neighbours, `NONE` at an end of a segment.
        is_free: (m,) whether nobody has it.
        free: (m,) slots of the free blocks that can be picked, in the order of length, then address.
        spare: (m,) slots that merges emptied.
        number: (4,) slots ever used, pickable free blocks, spare slots, and the shortest length that is pickable.
    """

    address: I8
    length: I8
    before: I4
    after: I4
    is_free: npt.NDArray[np.bool_]
    free: I4
    spare: I4
    number: I8


@njit(cache=True, inline="always")
def new_blocks(m: int, least: int) -> Blocks:
    """No blocks, and room for `m`; free ones shorter than `least` are only merged, never picked."""
    return Blocks(
        np.empty(m, np.int64),
        np.empty(m, np.int64),
        np.empty(m, np.int32),
        np.empty(m, np.int32),
        np.zeros(m, np.bool_),
        np.empty(m, np.int32),
        np.empty(m, np.int32),
        np.array([0, 0, 0, least], np.int64),
    )


@njit(cache=True, inline="always")
def make_block(blocks: Blocks, address: int, length: int, before: int, after: int) -> int:
    """A block that somebody has, between two neighbours; returns its slot."""
    if blocks.number[2] > 0:
        blocks.number[2] -= 1
        s = np.int64(blocks.spare[blocks.number[2]])
    else:
        s = blocks.number[0]
        blocks.number[0] = s + 1
    blocks.address[s], blocks.length[s] = address, length
    blocks.before[s], blocks.after[s] = before, after
    if before != NONE:
        blocks.after[before] = s
    if after != NONE:
        blocks.before[after] = s
    return s


@njit(cache=True, inline="always")
def split(blocks: Blocks, slot: int, length: int) -> int:
    """Cut what is beyond the first `length` bytes off a block; returns the slot of the rest."""
    rest = make_block(blocks, blocks.address[slot] + length, blocks.length[slot] - length, slot, blocks.after[slot])
    blocks.length[slot] = length
    return rest


@njit(cache=True, inline="always")
def merge_free(blocks: Blocks, slot: int) -> None:
    """Grow a block over its free neighbours."""
    p, q = blocks.before[slot], blocks.after[slot]
    if p != NONE and blocks.is_free[p]:
        take_free(blocks, p)
        discard(blocks, p)
        blocks.address[slot] = blocks.address[p]
        blocks.length[slot] += blocks.length[p]
        blocks.before[slot] = blocks.before[p]
        if blocks.before[p] != NONE:
            blocks.after[blocks.before[p]] = slot
    if q != NONE and blocks.is_free[q]:
        take_free(blocks, q)
        discard(blocks, q)
        blocks.length[slot] += blocks.length[q]
        blocks.after[slot] = blocks.after[q]
        if blocks.after[q] != NONE:
            blocks.before[blocks.after[q]] = slot


@njit(cache=True, inline="always")
def discard(blocks: Blocks, slot: int) -> None:
    """Forget a block that others have absorbed: its slot will be used again."""
    blocks.spare[blocks.number[2]] = slot
    blocks.number[2] += 1


@njit(cache=True, inline="always")
def _rank(blocks: Blocks, length: int, address: int) -> int:
    """How many free blocks come before (length, address)."""
    low, high = 0, blocks.number[1]
    while low < high:
        middle = (low + high) >> 1
        s = blocks.free[middle]
        if blocks.length[s] < length or (blocks.length[s] == length and blocks.address[s] < address):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, inline="always")
def put_free(blocks: Blocks, slot: int) -> None:
    """Put a block among the free ones."""
    blocks.is_free[slot] = True
    if blocks.length[slot] < blocks.number[3]:
        return
    at = _rank(blocks, blocks.length[slot], blocks.address[slot])
    for j in range(blocks.number[1], at, -1):
        blocks.free[j] = blocks.free[j - 1]
    blocks.free[at] = slot
    blocks.number[1] += 1


@njit(cache=True, inline="always")
def take_free(blocks: Blocks, slot: int) -> None:
    """Take a block from the free ones; its address and length must be those it was put there with."""
    blocks.is_free[slot] = False
    if blocks.length[slot] < blocks.number[3]:
        return
    blocks.number[1] -= 1
    for j in range(_rank(blocks, blocks.length[slot], blocks.address[slot]), blocks.number[1]):
        blocks.free[j] = blocks.free[j + 1]


@njit(cache=True, inline="always")
def best_fit(blocks: Blocks, length: int) -> int:
    """The smallest free block of at least `length` bytes, the lowest of those; `NONE` if there is none."""
    at = _rank(blocks, length, -1)
    return int(blocks.free[at]) if at < blocks.number[1] else NONE
