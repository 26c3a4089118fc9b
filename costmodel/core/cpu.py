"""Seconds of each op on a CPU: overhead, compute, and traffic from each memory level."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8, CpuRates, OpTable
from .traffic import beyond

__all__ = ["BOUNDS", "price_cpu", "sweep_cpu"]

# Columns of `price_cpu`'s answer; the levels follow.
BOUNDS = ("overhead", "compute")


@njit(cache=True, inline="always")
def _cold_s(distance: float, cold_s: F8, capacity: F8) -> float:
    """Seconds that an op pays because its code was used `distance` bytes ago."""
    seconds, left = 0.0, 1.0
    for level in range(cold_s.shape[0]):
        missed = left * beyond(distance, capacity[level]) if level < capacity.shape[0] else 0.0
        seconds += (left - missed) * cold_s[level]
        left = missed
    return seconds


@njit(cache=True)
def price_cpu(table: OpTable, distance: F8, code_distance: F8, rates: CpuRates) -> tuple[F8, F8]:
    """Price each op.

        t = overhead + cold + max(compute, traffic) + (1 - overlap) · min(compute, traffic)

    with cold = Σ levels share · cold_s, compute = work · work_s + Σ amount · term_s and
    traffic = Σ operands Σ levels bytes · share · s/byte.

    Args:
        table: n ops.
        distance: (u,) reuse distance of each operand in bytes, from `traffic.reuse_distance`.
        code_distance: (n,) reuse distance of each op's code, over `traffic.CODE_SHARE`, in bytes.
        rates: the device.

    Returns:
        (n,) seconds, and (n, 2 + L) seconds by part: overhead, compute, then each level from the nearest to DRAM.
    """
    n = table.kind.shape[0]
    levels = rates.read_s.shape[1]
    seconds = np.empty(n)
    parts = np.zeros((n, 2 + levels))
    for i in range(n):
        k = table.kind[i]
        compute = table.work[i] * rates.work_s[k, table.unit[i]]
        for j in range(table.term_ptr[i], table.term_ptr[i + 1]):
            compute += table.amount[j] * rates.term_s[table.term[j]]
        traffic = 0.0
        for u in range(table.use_ptr[i], table.use_ptr[i + 1]):
            left = table.use_bytes[u]
            for level in range(levels):
                # what this level holds of what the nearer ones did not
                missed = left * beyond(distance[u], rates.capacity[level]) if level < levels - 1 else 0.0
                s_per_byte = rates.write_s[k, level] if table.use_write[u] else rates.read_s[k, level]
                part = (left - missed) * s_per_byte
                parts[i, 2 + level] += part
                traffic += part
                left = missed
        overhead = rates.overhead_s[k] + _cold_s(code_distance[i], rates.cold_s[k], rates.capacity)
        parts[i, 0] = overhead
        parts[i, 1] = compute
        seconds[i] = overhead + max(compute, traffic) + (1.0 - rates.overlap[k]) * min(compute, traffic)
    return seconds, parts


@njit(cache=True)
def sweep_cpu(
    table: OpTable,
    distance: F8,
    code_distance: F8,
    rates: CpuRates,
    compute_scale: F8,
    traffic_scale: F8,
    overhead_scale: F8,
    capacity_scale: F8,
) -> F8:
    """Total seconds of a step on v variants of a device: its rates times the variant's scales.

    Args:
        table, distance, code_distance, rates: as in `price_cpu`.
        compute_scale, traffic_scale, overhead_scale, capacity_scale: (v,) factors on seconds and on cache sizes.

    Returns:
        (v,) seconds of the whole step.
    """
    n = table.kind.shape[0]
    levels = rates.read_s.shape[1]
    total = np.zeros(compute_scale.shape[0])
    compute = np.zeros(n)
    for i in range(n):
        k = table.kind[i]
        compute[i] = table.work[i] * rates.work_s[k, table.unit[i]]
        for j in range(table.term_ptr[i], table.term_ptr[i + 1]):
            compute[i] += table.amount[j] * rates.term_s[table.term[j]]
    for v in range(total.shape[0]):
        answer = 0.0
        capacity = rates.capacity * capacity_scale[v]
        for i in range(n):
            k = table.kind[i]
            traffic = 0.0
            for u in range(table.use_ptr[i], table.use_ptr[i + 1]):
                left = table.use_bytes[u]
                for level in range(levels):
                    missed = 0.0
                    if level < levels - 1:
                        missed = left * beyond(distance[u], capacity[level])
                    s_per_byte = rates.write_s[k, level] if table.use_write[u] else rates.read_s[k, level]
                    traffic += (left - missed) * s_per_byte
                    left = missed
            c = compute[i] * compute_scale[v]
            traffic *= traffic_scale[v]
            cold = _cold_s(code_distance[i], rates.cold_s[k], capacity)
            overhead = (rates.overhead_s[k] + cold) * overhead_scale[v]
            answer += overhead + max(c, traffic) + (1.0 - rates.overlap[k]) * min(c, traffic)
        total[v] = answer
    return total
