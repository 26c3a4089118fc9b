"""Live bytes over a step, op by op, and the allocations and frees that make them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import I8

__all__ = ["allocation_events", "live_bytes"]


@njit(cache=True)
def live_bytes(size: I8, birth: I8, death: I8, workspace: I8) -> I8:
    """Bytes that are allocated while each op runs, its own outputs and workspace included.

    Args:
        size: (s,) bytes of each storage.
        birth, death: (s,) the storage is live during op k when ``birth <= k < death``.
        workspace: (n,) transient bytes of each op.

    Returns:
        (n + 1,) live bytes; entry 0 is before the step, entry k + 1 during op k.
    """
    n = workspace.shape[0]
    change = np.zeros(n + 2, np.int64)
    for s in range(size.shape[0]):
        if birth[s] < death[s]:
            change[birth[s] + 1] += size[s]
            change[death[s] + 1] -= size[s]
    live = np.empty(n + 1, np.int64)
    held = np.int64(0)
    for k in range(n + 1):
        held += change[k]
        live[k] = held
    for k in range(n):
        live[k + 1] += workspace[k]
    return live


@njit(cache=True)
def allocation_events(birth: I8, death: I8, first_birth: I8, ops: int, steps: int) -> I8:
    """What the allocator sees of `steps` runs of a step: signed block numbers (see `allocator`).

    At each op, what dies before it is given back, then what is born in it is allocated, in the order of the blocks.
    What a step makes and leaves behind (gradients, its output) is given back when the next one starts.

    Args:
        birth, death: (b,) lifetimes in steady state, as in `live_bytes`.
        first_birth: (b,) births in the first run: optimizer state that exists in steady state is born in it.
        ops: ops of the step.
        steps: runs.

    Returns:
        (e,) events.
    """
    n, blocks = ops, birth.shape[0]
    # blocks by birth and by death, each a list a position: heads and links
    starts, first_starts, ends = np.full(n + 1, -1), np.full(n + 1, -1), np.full(n + 1, -1)
    next_start, next_first, next_end = np.full(blocks, -1), np.full(blocks, -1), np.full(blocks, -1)
    for i in range(blocks - 1, -1, -1):
        if birth[i] < death[i]:
            at = birth[i] + 1
            next_start[i], starts[at] = starts[at], i
            at = first_birth[i] + 1
            next_first[i], first_starts[at] = first_starts[at], i
            next_end[i], ends[death[i]] = ends[death[i]], i
    events = np.empty(2 * steps * blocks, np.int64)
    e = 0
    for step in range(steps):
        heads, links = (first_starts, next_first) if step == 0 else (starts, next_start)
        for k in range(-1, n):
            # before the first op of a later step: what the step before left
            b = int(ends[n] if k < 0 else ends[k]) if step > 0 or k >= 0 else -1
            while b >= 0:
                if birth[b] >= 0 or step == 0:
                    events[e] = -(b + 1)
                    e += 1
                b = int(next_end[b])
            b = int(heads[k + 1]) if step == 0 or k >= 0 else -1
            while b >= 0:
                events[e] = b + 1
                e += 1
                b = int(links[b])
    return events[:e]
