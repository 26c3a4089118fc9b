"""The numbers behind the pictures, once for the interactive page and for the printed figures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.table import UNITS
from ..estimate import Estimate
from ..footprint import AT_PEAK
from ..lower import peak_flops_per_s

__all__ = ["Life", "OpPoint", "Roof", "Roofline", "Timeline", "roofline", "timeline"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
MAX_STEPS = 400  # of a timeline: a step each two or three pixels of a screen


@dataclass(frozen=True)
class OpPoint:
    """Ops that cost the same: one point of a roofline, `count` of them; `module` is where the first stands.

    FLOPs, bytes and seconds are of one op.
    """

    op: str
    module: str
    phase: str
    count: int
    flops: float
    bytes: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Roof:
    """A peak (FLOP/s of a unit) or a bandwidth (bytes/s of a memory level)."""

    name: str
    rate: float


@dataclass(frozen=True)
class Roofline:
    """Every op that takes time, and the roofs above.

    Attributes:
        computing: ops with FLOPs and bytes, by FLOPs a byte and FLOP/s.
        moving: ops with bytes and no FLOPs, by bytes and bytes/s.
        free: how many ops have neither (views, allocations).
        peaks, bandwidths: roofs of the units that occur, and of the memory levels.
    """

    computing: tuple[OpPoint, ...]
    moving: tuple[OpPoint, ...]
    free: int
    peaks: tuple[Roof, ...]
    bandwidths: tuple[Roof, ...]


def roofline(estimate: Estimate) -> Roofline:
    """Every op of an estimate as a point; ops that cost the same share one."""
    graph, table = estimate.graph, estimate.lowered.table
    seen: dict[tuple[str, str, float, float, float], list[int]] = {}
    for k in range(len(graph)):
        # four digits of the time: equal ops differ a little by where the caches find their operands
        time = float(f"{estimate.seconds[k]:.4g}")
        key = (graph.op_name[k], graph.op_phase[k], float(table.flops[k]), float(estimate.lowered.op_bytes[k]), time)
        seen.setdefault(key, []).append(k)
    points = [
        OpPoint(name, graph.op_module[ops[0]], phase, len(ops), flops, size, time, estimate.bound_of(ops[0]))
        for (name, phase, flops, size, time), ops in seen.items()
    ]
    computing = tuple(p for p in points if p.flops > 0 and p.bytes > 0 and p.seconds > 0)
    moving = tuple(p for p in points if p.flops == 0 and p.bytes > 0 and p.seconds > 0)
    drawn = sum(p.count for p in (*computing, *moving))
    units = {UNITS[table.unit[k]] for k in np.flatnonzero(table.flops > 0)}
    return Roofline(computing, moving, len(graph) - drawn, _peaks(estimate, units), _bandwidths(estimate))


def _peaks(estimate: Estimate, wanted: set[str]) -> tuple[Roof, ...]:
    device = estimate.device
    rates: dict[str, float] = {}
    gpu = device.gpu if device.runtime[estimate.runtime].engine == "gpu" else None
    for unit in sorted(wanted):
        if gpu is None:
            rates[unit] = peak_flops_per_s(device, unit, estimate.threads)
        else:
            peaks: dict[Any, Any] = dict(gpu.flops_per_s)
            rates[unit] = peaks.get(unit, peaks.get("fp32", next(iter(peaks.values())))).value
    return tuple(Roof(unit, rate) for unit, rate in sorted(rates.items(), key=lambda r: r[1]))


def _bandwidths(estimate: Estimate) -> tuple[Roof, ...]:
    """What the device's levels deliver by its profile, to the threads of the estimate."""
    device, threads = estimate.device, estimate.threads
    gpu = device.gpu if device.runtime[estimate.runtime].engine == "gpu" else None
    if gpu is not None:
        roofs = [Roof("dram", gpu.dram_bytes_per_s.value)]
        if gpu.l2_bytes_per_s:
            roofs.append(Roof("L2", gpu.l2_bytes_per_s.value))
        return tuple(roofs)
    memory = device.memory
    dram = memory.read_bytes_per_s.value
    if memory.core_read_bytes_per_s:
        dram = min(dram, threads * memory.core_read_bytes_per_s.value)
    roofs = [Roof("dram", dram)]
    for cache in sorted(device.cpu[0].cache, key=lambda c: -c.level):
        if cache.level >= 2 and cache.read_bytes_per_s:
            roofs.append(Roof(f"L{cache.level}", threads * cache.read_bytes_per_s.value))
    return tuple(roofs)


@dataclass(frozen=True)
class Life:
    """A storage that is live at the peak: from when to when (seconds), and what it is."""

    name: str
    role: str
    bytes: int
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class Timeline:
    """Live bytes over the predicted step.

    Attributes:
        time_s: (t,) start of each step of the curve.
        ops: (t,) position of the op, -1 before the first.
        held: (t,) live bytes by role, roles that hold none left out; they add up to `live`.
        live: (t,) the total.
        peak: index of the peak in the curve.
        end_s: end of the step.
        phases: name, start and end of each stretch of one phase.
        lives: the largest storages at the peak, largest first.
    """

    time_s: F8
    ops: I8
    held: dict[str, I8]
    live: I8
    peak: int
    end_s: float
    phases: tuple[tuple[str, float, float], ...]
    lives: tuple[Life, ...]


def timeline(estimate: Estimate, lives: int = 12, steps: int = MAX_STEPS) -> Timeline:
    """Memory over time; a long step is thinned to `steps` points, each the largest of its stretch."""
    graph, memory = estimate.graph, estimate.lowered.memory
    n = len(graph)
    starts = np.concatenate(([0.0], estimate.start)) if n else np.zeros(1)
    live = estimate.footprint.live
    held: dict[str, Any] = {}
    roles = np.array([AT_PEAK[r] for r in graph.storage_role])
    for role in AT_PEAK.values():
        own = np.flatnonzero(roles == role)
        change = np.zeros(n + 2, np.int64)
        np.add.at(change, memory.birth[own] + 1, memory.bytes[own])
        np.add.at(change, np.minimum(memory.death[own], n) + 1, -memory.bytes[own])
        held[role] = np.cumsum(change)[: n + 1]
    held["workspace"] = np.concatenate(([0], memory.workspace)).astype(np.int64)
    keep = _thinned(live, steps)
    end = float(estimate.end[-1]) if n else 0.0
    return Timeline(
        time_s=starts[keep],
        ops=keep - 1,
        held={role: curve[keep] for role, curve in held.items() if curve.any()},
        live=live[keep],
        peak=int(np.flatnonzero(keep == estimate.footprint.peak_op + 1)[0]),
        end_s=end,
        phases=_phases(estimate),
        lives=_lives(estimate, starts, end, lives),
    )


def _thinned(live: Any, steps: int) -> I8:
    """Positions of the largest value of each of `steps` equal stretches, the first and the last position."""
    n = len(live)
    if n <= steps:
        return np.arange(n)
    edges = np.linspace(0, n, steps + 1).astype(np.int64)
    largest = [a + int(np.argmax(live[a:b])) for a, b in pairwise(edges) if b > a]
    return np.unique([0, *largest, int(np.argmax(live)), n - 1])


def _phases(estimate: Estimate) -> tuple[tuple[str, float, float], ...]:
    found: list[tuple[str, float, float]] = []
    for phase, start, end in zip(estimate.graph.op_phase, estimate.start, estimate.end):
        if found and found[-1][0] == phase:
            found[-1] = (phase, found[-1][1], float(end))
        else:
            found.append((phase, float(start), float(end)))
    return tuple(found)


def _lives(estimate: Estimate, starts: F8, end: float, most: int) -> tuple[Life, ...]:
    graph, memory = estimate.graph, estimate.lowered.memory
    peak = estimate.footprint.peak_op
    alive = np.flatnonzero((memory.birth <= peak) & (peak < np.maximum(memory.death, 0)))
    largest = alive[np.argsort(memory.bytes[alive], kind="stable")[::-1][:most]]
    found = []
    for s in largest:
        birth, death = int(memory.birth[s]), int(memory.death[s])
        made = f"{graph.op_name[birth].removeprefix('aten::')} in {graph.op_module[birth] or '(root)'}"
        name = graph.storage_name[s] or (made if birth >= 0 else "before the step")
        found.append(
            Life(
                name=name,
                role=AT_PEAK[graph.storage_role[s]].replace("_", " "),
                bytes=int(memory.bytes[s]),
                start_s=float(starts[birth + 1]),
                end_s=float(starts[death + 1]) if death < len(graph) else end,
            )
        )
    return tuple(found)
