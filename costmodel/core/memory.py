"""Live bytes over a step: what tensors hold, op by op."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import I8

__all__ = ["live_bytes"]


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
