"""Which memory level serves each operand: LRU stack distances over the traced order."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8, I4, I8

__all__ = ["CODE_BYTES", "CODE_SHARE", "beyond", "reuse_distance", "step_distances"]

# What an op's code and its library's tables for it push out of a cache: a JIT kernel of oneDNN and the way to it.
CODE_BYTES = 32e3
# Of a cache, what code keeps against the data that stream past it (reports/diary.md: 1/8 on the development models).
CODE_SHARE = 0.125


@njit(cache=True)
def reuse_distance(use_storage: I4, use_bytes: F8, n_storages: int) -> F8:
    """Bytes of other data touched since each operand was touched last (its LRU stack distance).

    The sequence is a step that is repeated: the first touch of a storage in the step looks back to its last touch in
    the step before. An operand's own bytes count once (a tensor larger than the cache cannot be found in it).

    Args:
        use_storage: (u,) storage of each operand.
        use_bytes: (u,) bytes touched by each operand.
        n_storages: number of storages.

    Returns:
        (u,) distance in bytes.

    A Fenwick tree over the positions of a doubled sequence holds each storage's bytes at its last touch:
    O(u log u), Olken (1981).
    """
    n_uses = use_storage.shape[0]
    length = 2 * n_uses
    tree = np.zeros(length + 1)
    last = np.full(n_storages, -1, np.int64)
    held = np.zeros(n_storages)
    distance = np.zeros(n_uses)
    total = 0.0
    for position in range(length):
        use = position % n_uses
        storage = use_storage[use]
        previous = last[storage]
        size = max(use_bytes[use], 0.0)
        if previous >= 0:
            # bytes whose last touch is at or before `previous`
            older = 0.0
            i = previous + 1
            while i > 0:
                older += tree[i]
                i -= i & (-i)
            newer = total - older
            if position >= n_uses:
                distance[use] = newer + max(size, held[storage])
            i = previous + 1
            while i <= length:
                tree[i] -= held[storage]
                i += i & (-i)
            total -= held[storage]
        elif position >= n_uses:
            distance[use] = total + size
        last[storage] = position
        held[storage] = size
        total += size
        i = position + 1
        while i <= length:
            tree[i] += size
            i += i & (-i)
    return distance


def step_distances(first: I8, storage: I4, size: F8, code: I4) -> tuple[F8, F8]:
    """Reuse distances of a step's touches, and of its ops' code, which each op touches before its operands.

    `CODE_SHARE` is applied here and not in a compiled function, whose cache does not see that it changed.

    Args:
        first: (n,) number of each op's first touch.
        storage: (u,) storage of each touch, 0 and up; size: (u,) its bytes.
        code: (n,) number of the code that runs each op.

    Returns:
        (u,) of the touches, and (n,) of the code over `CODE_SHARE`, in bytes.
    """
    storages, at = int(storage.max(initial=-1)) + 1, first + np.arange(len(code))
    touched = np.insert(storage, first, storages + code).astype(np.int32)
    both = reuse_distance(touched, np.insert(size, first, CODE_BYTES), storages + int(code.max(initial=-1)) + 1)
    return np.delete(both, at), both[at] / CODE_SHARE


@njit(cache=True, inline="always")
def beyond(distance: float, capacity: float) -> float:
    """Share of an operand that a cache of `capacity` no longer holds at this reuse distance.

    A Hill function of order 3: replacement is not LRU, sets conflict and others share the cache, so the step at
    ``distance == capacity`` is soft (LATENCY.md fits a logistic in ln(d) of the same width).
    """
    if distance <= 0.0:
        return 0.0
    ratio = distance / capacity
    cube = ratio * ratio * ratio
    return cube / (1.0 + cube)
