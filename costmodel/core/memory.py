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
def allocation_events(birth: I8, death: I8, workspace: I8, first_birth: I8, steps: int) -> I8:
    """What the allocator sees of `steps` runs of a step: signed block numbers (see `allocator`).

    Blocks 0 to s - 1 are the storages, block s + k is the workspace of op k. What a step makes and leaves behind
    (gradients, its output) is given back when the next one starts.

    Args:
        birth, death: (s,) lifetimes in steady state, as in `live_bytes`.
        workspace: (n,) transient bytes of each op; ops with 0 have no events.
        first_birth: (s,) births in the first run: optimizer state that exists in steady state is born in it.
        steps: runs.

    Returns:
        (e,) events.
    """
    s, n = birth.shape[0], workspace.shape[0]
    # storages by birth and by death, each a list a position: heads and links
    starts, first_starts, ends = np.full(n + 1, -1), np.full(n + 1, -1), np.full(n + 1, -1)
    next_start, next_first, next_end = np.full(s, -1), np.full(s, -1), np.full(s, -1)
    for i in range(s - 1, -1, -1):
        if birth[i] < death[i]:
            at = birth[i] + 1
            next_start[i], starts[at] = starts[at], i
            at = first_birth[i] + 1
            next_first[i], first_starts[at] = first_starts[at], i
            next_end[i], ends[death[i]] = ends[death[i]], i
    events = np.empty(steps * (2 * s + 2 * n), np.int64)
    e = 0
    for step in range(steps):
        heads, links = (first_starts, next_first) if step == 0 else (starts, next_start)
        if step > 0:
            b = int(ends[n])
            while b >= 0:
                if birth[b] >= 0:
                    events[e] = -(b + 1)
                    e += 1
                b = int(next_end[b])
        for k in range(-1, n):
            if k >= 0:
                b = int(ends[k])
                while b >= 0:
                    if birth[b] >= 0 or step == 0:
                        events[e] = -(b + 1)
                        e += 1
                    b = int(next_end[b])
            if k >= 0 or step == 0:
                b = int(heads[k + 1])
                while b >= 0:
                    events[e] = b + 1
                    e += 1
                    b = int(links[b])
            if k >= 0 and workspace[k] > 0:
                events[e], events[e + 1] = s + k + 1, -(s + k + 1)
                e += 2
    return events[:e]
