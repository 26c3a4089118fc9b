"""Seconds of each kernel on a GPU: waves of tiles under a roofline, never shorter than a launch."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8, GpuRates, OpTable
from .traffic import beyond

__all__ = ["price_gpu"]


@njit(cache=True)
def price_gpu(table: OpTable, distance: F8, rates: GpuRates) -> tuple[F8, F8]:
    """Price each op.

        waves = max(tiles / SMs, 1);  utilisation = max(gamma - alpha / waves, least), at most 1
        t = max(floor · calls, work · work_s / utilisation, bytes from L2 and DRAM)

    Waves are not rounded up: with `ceil`, the step from one wave to two raises utilisation at once and a larger batch
    would be priced as faster. For waves of at least ``2 alpha / gamma`` the time grows with the work.

    Args:
        table: n ops; an op with no work and no bytes launches nothing.
        distance: (u,) reuse distance of each operand in bytes.
        rates: the device.

    Returns:
        (n,) seconds on the device, and (n, 4) seconds by part: floor, compute, L2, DRAM.
    """
    n = table.kind.shape[0]
    seconds = np.zeros(n)
    parts = np.zeros((n, 4))
    for i in range(n):
        k = table.kind[i]
        waves = max(table.tiles[i] / rates.sms, 1.0)
        utilisation = min(max(rates.gamma[k] - rates.alpha[k] / waves, rates.least), 1.0)
        parts[i, 1] = table.work[i] * rates.work_s[k, table.unit[i]] / utilisation
        touched = 0.0
        for u in range(table.use_ptr[i], table.use_ptr[i + 1]):
            missed = table.use_bytes[u] * beyond(distance[u], rates.l2_bytes)
            touched += table.use_bytes[u]
            parts[i, 2] += (table.use_bytes[u] - missed) * rates.byte_s[0]
            parts[i, 3] += missed * rates.byte_s[1]
        if table.work[i] > 0.0 or touched > 0.0:
            parts[i, 0] = rates.floor_s[k] * table.calls[i]
        seconds[i] = max(parts[i, 0], parts[i, 1], parts[i, 2] + parts[i, 3])
    return seconds, parts
