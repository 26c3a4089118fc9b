"""Tables × device to an estimate: seconds, bytes, operations and joules of a step, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .calibrated import Beyond, beyond_calibration
from .core.malloc import PAGE
from .core.table import F8, UNITS
from .device import Device, Interval, Runtime
from .errors import CostmodelError, UnknownName
from .footprint import Footprint, footprint, fresh_bytes
from .fusion import Fused, fuse
from .graph import OpGraph
from .lower import (
    UNPRICED,
    Lowered,
    class_scale_of,
    cpu_rates,
    gpu_rates,
    levels_of,
    loop_s,
    looped,
    lower,
    packing_s,
    peak_flops_per_s,
)

__all__ = [
    "ALLOCATORS", "PAGE_FAULTS", "Coverage", "Estimate", "Memory", "OpRow", "Range", "estimate", "price_ops",
    "roofline",
]  # fmt: skip

# What a live-byte figure is known to: the replay is exact but for workspaces that no formula has.
_LIVE = Interval(low=-0.01, high=0.01, cases=0, kind="guess", source="the bar of tests/test_validate.py")
_RESIDENT = Interval(low=-0.25, high=0.25, cases=0, kind="guess", source="not yet validated on this device")

# glibc's malloc as it is, or with freed memory kept (`measure.latency.pinned_allocator`).
ALLOCATORS = ("default", "pinned")

PAGE_FAULTS = "page faults"
"""The part of an op's seconds in which the system gives it pages, among `Estimate.bounds`."""

# To what, in ln, the pages of a step are known: where a heap is trimmed is chaotic, and differs from step to step.
_FRESH = 0.7

# How far, in ln, steps were off beside the interval of a calibration that was made for another thread count or another
# dtype (reports/diary.md, variants of the host suite: 8 steps each).
_OTHER_THREADS, _OTHER_DTYPE = 0.1, 0.8


@dataclass(frozen=True)
class Range:
    """A predicted figure: between `low` and `high`, most likely `point`."""

    low: float
    point: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"low": self.low, "point": self.point, "high": self.high}

    @classmethod
    def around(cls, point: float, interval: Interval, widen: float = 0.0) -> Range:
        """`point` with the quantiles of ln(measured / predicted), each moved outwards by `widen`."""
        return cls(point * math.exp(interval.low - widen), point, point * math.exp(interval.high + widen))


@dataclass(frozen=True)
class Coverage:
    """How much of the step has a formula: share of ops, share of predicted time; what has none, with counts."""

    ops: float
    time: float
    unpriced: Mapping[str, int]


@dataclass(frozen=True)
class OpRow:
    """All ops of one name: how often, how long, how much, and what bounds most of their time."""

    op: str
    count: int
    latency_s: float
    flops: float
    bytes: float
    bound: str


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a step, each with its interval."""

    peak_live: Range
    peak_reserved: Range
    peak_rss: Range


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a step costs on a device.

    Attributes:
        graph, device, runtime, threads, allocator: what was priced where.
        seconds: (n,) predicted seconds of each op on the device.
        start, end: (n,) when each op runs.
        parts: (n, p) seconds of each op by part, named by `bounds`.
        latency_s: the whole step.
        baseline_latency_s: the roofline with one constant, the figure to beat.
        footprint: memory over the step.
        energy_j: joules, or None where the profile has no sourced constants.
        fresh: (n,) bytes of pages that the system gives malloc in each op (`fresh_bytes`), None if not priced.
    """

    lowered: Lowered
    device: Device
    runtime: str
    threads: int
    seconds: F8
    start: F8
    end: F8
    parts: F8
    bounds: tuple[str, ...]
    latency_s: Range
    baseline_latency_s: float
    footprint: Footprint
    memory: Memory
    energy_j: Range | None
    coverage: Coverage
    allocator: str
    fresh: F8 | None

    @property
    def graph(self) -> OpGraph:
        return self.lowered.graph

    @cached_property
    def flops(self) -> int:
        """Operations of the step; one multiply-add is two."""
        return sum(c.flops for c in self.lowered.costs)

    @cached_property
    def bytes_moved(self) -> int:
        """Bytes that ops read and write, at whatever level."""
        return int(self.lowered.op_bytes.sum())

    @property
    def fits(self) -> bool:
        """Whether the upper bound of what is resident fits the memory that a program can have."""
        engine = self.device.runtime[self.runtime].engine
        peak = self.memory.peak_reserved if engine == "gpu" else self.memory.peak_rss
        return peak.high <= self.device.usable_bytes(engine)

    def bound_of(self, op: int) -> str:
        """The part that takes the largest share of op number `op`."""
        return self.bounds[int(np.argmax(self.parts[op]))]

    @property
    def page_faults_s(self) -> float:
        """Seconds of the step in which the system gives pages that malloc had given back; 0 if not priced."""
        return 0.0 if self.fresh is None else float(self.parts[:, -1].sum())

    @cached_property
    def beyond_calibration(self) -> tuple[Beyond, ...]:
        """Terms of algorithm classes that are far out of what was calibrated, and make a hundredth of the step."""
        runtime, meta = self.device.runtime[self.runtime], self.graph.meta
        found = beyond_calibration(self.lowered.costs, runtime, threads=self.threads, dtype=meta.dtype, mode=meta.mode)
        return tuple(b for b in found if b.seconds >= 0.01 * self.latency_s.point)

    def by_op(self) -> list[OpRow]:
        """One row an op name, the dearest first."""
        return self._rows(self.graph.op_name)

    def by_module(self, depth: int = 2) -> list[OpRow]:
        """One row a module path cut to `depth` parts, the dearest first."""
        return self._rows([".".join(m.split(".")[:depth]) or "(root)" for m in self.graph.op_module])

    def by_phase(self) -> list[OpRow]:
        """One row a phase: forward, backward, optimizer."""
        return self._rows(self.graph.op_phase)

    def _rows(self, keys: list[str]) -> list[OpRow]:
        members: dict[str, list[int]] = {}
        for k, key in enumerate(keys):
            members.setdefault(key, []).append(k)
        rows = []
        for key, ops in members.items():
            index = np.array(ops)
            rows.append(
                OpRow(
                    op=key,
                    count=len(ops),
                    latency_s=float(self.seconds[index].sum()),
                    flops=float(self.lowered.table.flops[index].sum()),
                    bytes=float(self.lowered.op_bytes[index].sum()),
                    bound=self.bounds[int(np.argmax(self.parts[index].sum(axis=0)))],
                )
            )
        return sorted(rows, key=lambda r: -r.latency_s)

    def annotate(self) -> Any:
        """`graph.nx` with ``latency_s``, ``flops``, ``bytes``, ``kind`` and ``bound`` on each node."""
        for k in range(len(self.graph)):
            self.graph.nx.nodes[k].update(
                latency_s=float(self.seconds[k]),
                flops=float(self.lowered.table.flops[k]),
                bytes=float(self.lowered.op_bytes[k]),
                kind=self.lowered.costs[k].kind,
                bound=self.bound_of(k),
            )
        return self.graph.nx

    def as_dict(self) -> dict[str, Any]:
        """The object that ``estimate --json`` prints."""
        meta = self.graph.meta
        return {
            "schema": 1,
            "model": meta.model,
            "device": self.device.name,
            "runtime": self.runtime,
            "mode": meta.mode,
            "method": meta.method,
            "batch": meta.batch,
            "threads": self.threads,
            "dtype": meta.dtype,
            "latency_s": self.latency_s.as_dict(),
            "baseline_latency_s": self.baseline_latency_s,
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
            "energy_j": None if self.energy_j is None else self.energy_j.as_dict(),
            "memory_bytes": {
                "peak_live": self.memory.peak_live.as_dict(),
                "peak_reserved": self.memory.peak_reserved.as_dict(),
                "peak_rss": self.memory.peak_rss.as_dict(),
                "at_peak": dict(self.footprint.at_peak),
            },
            "fits": self.fits,
            "coverage": {
                "ops": self.coverage.ops,
                "time": self.coverage.time,
                "unpriced": dict(self.coverage.unpriced),
                "assumed": meta.assumed,
                "beyond_calibration": [b._asdict() for b in self.beyond_calibration],
            },
            "by_op": [
                {
                    "op": r.op,
                    "count": r.count,
                    "latency_s": r.latency_s,
                    "flops": r.flops,
                    "bytes": r.bytes,
                    "bound": r.bound,
                }
                for r in self.by_op()
            ],
        }


def estimate(
    graph: OpGraph,
    device: Device,
    *,
    runtime: str | None = None,
    threads: int = 1,
    strict: bool = False,
    allocator: str = "default",
) -> Estimate:
    """Price a traced step on a device.

    Args:
        graph: from `capture` or `load`.
        device: from `load_device`.
        runtime: one of the device's runtimes; its default otherwise.
        threads: CPU threads; algorithm branches depend on them.
        strict: an op without a formula is an error instead of a gap on the report.
        allocator: on a CPU, ``default`` is glibc's own, which gives memory back to the system and faults its pages in
            anew (`Runtime.page_fault_s` each, if the profile has it); ``pinned`` keeps what was freed.

    Returns:
        The estimate; each figure with an interval.
    """
    name = runtime or device.default_runtime
    if name not in device.runtime:
        raise UnknownName(f"runtime of {device.name}", name, device.runtime)
    if threads < 1:
        raise CostmodelError(f"threads must be at least 1, not {threads}")
    if allocator not in ALLOCATORS:
        raise UnknownName("allocator", allocator, ALLOCATORS)
    constants = device.runtime[name]
    lowered = lower(graph, threads, device.lanes)
    if strict and graph.meta.assumed:
        raise CostmodelError(
            f"what some ops do depends on activations, and was assumed: {graph.meta.assumed}; "
            "make it static, or drop --strict"
        )
    if strict and lowered.unpriced:
        gaps = ", ".join(f"{op} ×{n}" for op, n in lowered.unpriced.most_common(8))
        raise CostmodelError(
            f"ops without a formula: {gaps}; give each with @costmodel.cost('ns::op'), or drop --strict"
        )
    own_kernels = constants.engine == "gpu" or "norm" in constants.fuse  # not those of torch on a CPU
    fused = fuse(lowered, constants.fuse, workspaces=not own_kernels)
    memory = footprint(lowered, constants)
    priced = allocator == "default" and constants.engine == "cpu" and constants.page_fault_s is not None
    fresh = fresh_bytes(lowered) if priced else None
    seconds, parts, bounds, issue_s = price_ops(fused, device, constants, fresh=fresh)
    from .core.timeline import two_queues

    start, end = two_queues(seconds, issue_s)
    phase_scale = constants.scale.get(graph.meta.mode) or constants.scale.get("default")
    scale = phase_scale.value if phase_scale else 1.0
    total = (float(end[-1]) if len(graph) else 0.0) * scale
    coverage = _coverage(lowered, seconds)
    interval = constants.interval.get(graph.meta.mode) or constants.interval["default"]
    widen = 0.5 * (1.0 - coverage.time)  # what has no formula is known to about a factor of e^0.5
    widen += _beyond_calibration(constants, threads, graph.meta.dtype)
    if fresh is not None and total > 0.0:
        widen += _FRESH * float(parts[:, -1].sum()) * scale / total
    return Estimate(
        lowered=fused.lowered,
        device=device,
        runtime=name,
        threads=threads,
        seconds=seconds * scale,
        start=start * scale,
        end=end * scale,
        parts=parts * scale,
        bounds=bounds,
        latency_s=Range.around(total, interval, widen),
        baseline_latency_s=roofline(lowered, device, constants),
        footprint=memory,
        memory=memory_ranges(memory, constants),
        energy_j=_energy(lowered, device, seconds * scale, interval),
        coverage=coverage,
        allocator=allocator,
        fresh=fresh,
    )


def memory_ranges(found: Footprint, runtime: Runtime) -> Memory:
    """The three peaks of a footprint, each with its interval."""
    return Memory(
        Range.around(found.peak_live, runtime.interval.get("peak_live", _LIVE)),
        Range.around(found.peak_reserved, runtime.interval.get("peak_reserved", _RESIDENT)),
        Range.around(found.peak_rss, runtime.interval.get("peak_rss", _RESIDENT)),
    )


def _beyond_calibration(runtime: Runtime, threads: int, dtype: str) -> float:
    """By how much, in ln, the interval of a calibrated runtime widens for what it was not calibrated for."""
    of_dtype = [f for f in runtime.fit if f.dtype == dtype]
    if not runtime.fit or any(f.threads == threads for f in of_dtype):
        return 0.0
    return _OTHER_THREADS if of_dtype else _OTHER_DTYPE


def price_ops(
    fused: Fused,
    device: Device,
    runtime: Runtime,
    distances: tuple[F8, F8] | None = None,
    fresh: F8 | None = None,
) -> tuple[F8, F8, tuple[str, ...], F8]:
    """Seconds of each op, by part; the names of the parts; what the host needs to issue each op.

    `distances` are reuse distances of the operands and of the ops' code. Without them they are those of addresses for
    a runtime that was calibrated (the isolated ops were timed with memory that stays mapped), else those of tensors.
    `fresh` are bytes of pages that the system gives in each op.
    """
    lowered = fused.lowered
    n = len(lowered.graph)
    if runtime.engine == "cpu":
        from .core.cpu import BOUNDS, price_cpu

        rates = cpu_rates(device, runtime, lowered)
        if distances is None and runtime.fit:
            from .placement import placed_distances

            distances = placed_distances(lowered)
        of_data, of_code = distances or (lowered.distance, lowered.code_distance)
        seconds, parts = price_cpu(looped(lowered, runtime), of_data, of_code, rates)
        # a loop over groups calls more often, a fused op not at all
        more = np.where(fused.joined, -parts[:, 0], loop_s(lowered, runtime))
        pack = packing_s(lowered, runtime)
        seconds += more + pack
        parts[:, 0] += more
        parts[:, 1] += pack
        bounds = (*BOUNDS, *levels_of(device))
        if fresh is not None and runtime.page_fault_s is not None:
            faults = fresh / PAGE * runtime.page_fault_s.value
            seconds, parts, bounds = seconds + faults, np.column_stack((parts, faults)), (*bounds, PAGE_FAULTS)
        return seconds, parts, bounds, np.zeros(n)
    from .core.gpu import price_gpu

    gpu = gpu_rates(device, runtime, lowered)
    table = lowered.table._replace(calls=lowered.table.calls * ~fused.joined)
    seconds, parts = price_gpu(table, lowered.distance, gpu)
    if runtime.class_scale:
        parts[:, 1:] *= np.array([class_scale_of(runtime, c.kind) for c in lowered.costs])[:, None]
        seconds = np.maximum(parts[:, :2].max(axis=1), parts[:, 2] + parts[:, 3])
    launched = (parts[:, 0] > 0.0) * table.calls
    return seconds, parts, ("overhead", "compute", "L2", "dram"), gpu.issue_s * launched


def _coverage(lowered: Lowered, seconds: F8) -> Coverage:
    n = len(lowered.graph)
    gap = np.array([c.kind == UNPRICED for c in lowered.costs], bool)
    total = float(seconds.sum())
    return Coverage(
        ops=1.0 - float(gap.sum()) / n if n else 1.0,
        time=1.0 - float(seconds[gap].sum()) / total if total > 0 else 1.0,
        unpriced=dict(lowered.unpriced.most_common()),
    )


def roofline(lowered: Lowered, device: Device, runtime: Runtime) -> float:
    """Seconds by a plain roofline: each op at peak or at DRAM bandwidth, whichever takes longer.

    The baseline that every figure is compared with; validation fits its one constant to the measured runs.
    """
    if runtime.engine == "gpu" and device.gpu is not None:
        flops = {u: v.value for u, v in device.gpu.flops_per_s.items()}
        peaks = np.array([flops.get(u, flops.get("fp32", next(iter(flops.values())))) for u in UNITS])  # type: ignore[call-overload]
        bandwidth = device.gpu.dram_bytes_per_s.value
    else:
        peaks = np.array([peak_flops_per_s(device, u, lowered.threads) for u in UNITS])
        bandwidth = device.memory.read_bytes_per_s.value
    compute = lowered.table.flops / peaks[lowered.table.unit]
    return float(np.maximum(compute, lowered.op_bytes / bandwidth).sum())


def _energy(lowered: Lowered, device: Device, seconds: F8, interval: Interval) -> Range | None:
    if device.energy is None:
        return None
    from .core.energy import op_energy

    e = device.energy
    total = op_energy(
        seconds,
        lowered.table.flops,
        lowered.op_bytes[:, None],
        e.idle_w.value,
        e.flop_j.value,
        np.array([e.byte_j.value]),
    ).sum()
    return Range.around(float(total), interval, 0.2)
