"""Plain twins of core/: cpu, gpu, traffic, timeline, energy. Slow, and written from the formulas, not from the code."""

from __future__ import annotations

import math
from typing import Any


def reuse_distance(storages: list[int], sizes: list[float]) -> list[float]:
    """Walk a repeated step with an explicit LRU stack."""
    stack: list[tuple[int, float]] = []  # most recent first
    distance = [0.0] * len(storages)
    for turn in range(2):
        for use, (storage, size) in enumerate(zip(storages, sizes)):
            size = max(size, 0.0)
            newer, found = 0.0, None
            for other, held in stack:
                if other == storage:
                    found = held
                    break
                newer += held
            if turn == 1:
                distance[use] = newer + (size if found is None else max(size, found))
            stack = [(s, h) for s, h in stack if s != storage]
            stack.insert(0, (storage, size))
    return distance


def beyond(distance: float, capacity: float) -> float:
    return 0.0 if distance <= 0 else 1.0 / (1.0 + (capacity / distance) ** 3)


def uses_of(table: Any, i: int) -> list[tuple[int, float, bool]]:
    return [
        (u, float(table.use_bytes[u]), bool(table.use_write[u]))
        for u in range(int(table.use_ptr[i]), int(table.use_ptr[i + 1]))
    ]


def price_cpu(table: Any, distance: Any, code_distance: Any, rates: Any) -> tuple[list[float], list[list[float]]]:
    seconds, parts = [], []
    levels = rates.read_s.shape[1]
    for i in range(len(table.kind)):
        k = table.kind[i]
        compute = table.work[i] * rates.work_s[k][table.unit[i]] + sum(
            table.amount[j] * rates.term_s[table.term[j]] for j in range(table.term_ptr[i], table.term_ptr[i + 1])
        )
        by_level = [0.0] * levels
        for u, size, write in uses_of(table, i):
            # share that reaches level l: what none of the caches before it holds
            reach = [math.prod(beyond(distance[u], c) for c in rates.capacity[:level]) for level in range(levels)]
            reach.append(0.0)
            for level in range(levels):
                rate = (rates.write_s if write else rates.read_s)[k][level]
                by_level[level] += size * (reach[level] - reach[level + 1]) * rate
        traffic = sum(by_level)
        reach = [math.prod(beyond(code_distance[i], c) for c in rates.capacity[:level]) for level in range(levels)]
        cold = sum((a - b) * rates.cold_s[k][level] for level, (a, b) in enumerate(zip(reach, [*reach[1:], 0.0])))
        overhead = rates.overhead_s[k] + cold
        hidden = rates.overlap[k] * min(compute, traffic)
        seconds.append(overhead + compute + traffic - hidden)
        parts.append([overhead, compute, *by_level])
    return seconds, parts


def price_gpu(table: Any, distance: Any, rates: Any) -> list[float]:
    seconds = []
    for i in range(len(table.kind)):
        k = table.kind[i]
        waves = table.outputs[i] / rates.tile / rates.sms
        products = table.work[i] / 2 / table.outputs[i]
        blocks = max(table.outputs[i] / rates.least_tile, 1.0) * max(products / rates.depth, 1.0)
        use = 1.0 - rates.loss[k] / waves if waves > 1.0 else min(blocks / rates.sms, 1.0) * (1.0 - rates.loss[k])
        compute = table.work[i] * rates.work_s[k][table.unit[i]] / use
        near = sum(b * (1 - beyond(distance[u], rates.l2_bytes)) for u, b, _ in uses_of(table, i))
        far = sum(b * beyond(distance[u], rates.l2_bytes) for u, b, _ in uses_of(table, i))
        floor = rates.floor_s[k] * table.calls[i] if table.work[i] or near + far else 0.0
        seconds.append(max(floor, compute, near * rates.byte_s[0] + far * rates.byte_s[1]))
    return seconds


def two_queues(device_s: list[float], issue_s: list[float]) -> list[float]:
    ends: list[float] = []
    for k in range(len(device_s)):
        issued = sum(issue_s[: k + 1])
        ends.append(max(issued, ends[-1] if ends else 0.0) + device_s[k])
    return ends
