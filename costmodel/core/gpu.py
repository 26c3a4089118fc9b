"""Seconds of each kernel on a GPU: waves of blocks under a roofline, never shorter than a launch."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8, GpuRates, OpTable
from .traffic import beyond

__all__ = ["price_gpu", "utilisation"]


@njit(cache=True)
def utilisation(outputs: float, work: float, k: int, rates: GpuRates) -> float:
    """Share of the SMs that an op keeps busy.

        waves = outputs / tile / SMs;  utilisation = 1 - loss / waves         from one wave on
        utilisation = (1 - loss) · min(blocks / SMs, 1)                       below

    Below one wave kernels cut finer, down to blocks of `least_tile` elements and, along the sums (split-K), `depth`
    products. Blocks that are fewer than the SMs run at their pace, however many more SMs there are. Nothing is rounded
    up: with `ceil`, a step to the next block or wave raises utilisation at once and a larger batch would be priced as
    faster. A loss of at most one half keeps time growing with the work, and a device with more SMs no slower.

    Args:
        outputs: elements of the result, at least 1; work: operations, two for each product; k: the op's class.
        rates: the device.
    """
    waves = outputs / (rates.tile * rates.sms)
    if waves > 1.0:
        return float(1.0 - rates.loss[k] / waves)
    blocks = max(outputs / rates.least_tile, 1.0) * max(work / (2.0 * outputs * rates.depth), 1.0)
    return float((1.0 - rates.loss[k]) * min(blocks / rates.sms, 1.0))


@njit(cache=True)
def price_gpu(table: OpTable, distance: F8, rates: GpuRates) -> tuple[F8, F8]:
    """Price each op.

        t = max(floor · calls, work · work_s / utilisation, bytes from L2 and DRAM)

    with `utilisation` of the SMs by the blocks that the op is cut into.

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
        used = utilisation(table.outputs[i], table.work[i], k, rates)
        parts[i, 1] = table.work[i] * rates.work_s[k, table.unit[i]] / used
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
