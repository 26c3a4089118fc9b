"""Issue against execute: the host issues kernels in order, the device runs them in order."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8

__all__ = ["two_queues"]


@njit(cache=True)
def two_queues(device_s: F8, issue_s: F8) -> tuple[F8, F8]:
    """Start and end of each op: ``end_k = max(issue_k, end_{k-1}) + t_k``.

    Args:
        device_s: (n,) seconds of each op on the device.
        issue_s: (n,) seconds that the host needs to issue each op; zeros for a CPU, where both are one queue, and
            under a CUDA graph.

    Returns:
        (n,) start and (n,) end in seconds. A small model is bound by the host: its ops wait for their issue.
    """
    n = device_s.shape[0]
    start = np.empty(n)
    end = np.empty(n)
    issued = 0.0
    free = 0.0
    for k in range(n):
        issued += issue_s[k]
        start[k] = max(issued, free)
        free = start[k] + device_s[k]
        end[k] = free
    return start, end
