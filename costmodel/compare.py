"""Two estimates side by side: which ops got dearer, where the peak of memory moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .estimate import Estimate, OpRow

__all__ = ["Change", "Comparison", "Peak", "compare"]

WAITING = "(waiting for issue)"


@dataclass(frozen=True)
class Change:
    """One op name (or module, or phase) in both estimates; what one of them lacks is zero there.

    Attributes:
        key: op name, module path or phase.
        count, latency_s, flops, bytes: (in a, in b).
    """

    key: str
    count: tuple[int, int]
    latency_s: tuple[float, float]
    flops: tuple[float, float]
    bytes: tuple[float, float]

    @property
    def delta_s(self) -> float:
        """Seconds that b takes more than a; negative where it got cheaper."""
        return self.latency_s[1] - self.latency_s[0]


@dataclass(frozen=True)
class Peak:
    """Where live bytes peak: the op's position among the ops of its step (-1 is before it), name, phase, module."""

    position: int
    ops: int
    op: str
    phase: str
    module: str
    bytes: int

    @classmethod
    def of(cls, estimate: Estimate) -> Peak:
        graph, k = estimate.graph, estimate.footprint.peak_op
        inside = k >= 0
        return cls(
            position=k,
            ops=len(graph),
            op=graph.op_name[k] if inside else "",
            phase=graph.op_phase[k] if inside else "before the step",
            module=graph.op_module[k] if inside else "",
            bytes=estimate.footprint.peak_live,
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimate `b` against estimate `a`.

    Attributes:
        a, b: the two estimates; models, methods, traces, devices or runtimes may differ.
        by_op, by_module, by_phase: changes, the one that moves the total most first; the `delta_s` of each list add
            up to the difference of the two latencies (ops that wait for their launch on a GPU have a row of their own).
        at_peak: bytes at the peak by role, (in a, in b); each column adds up to its peak.
        peak: where each peaks.
    """

    a: Estimate
    b: Estimate
    by_op: tuple[Change, ...]
    by_module: tuple[Change, ...]
    by_phase: tuple[Change, ...]
    at_peak: dict[str, tuple[int, int]]
    peak: tuple[Peak, Peak]

    @property
    def delta_s(self) -> float:
        """Seconds that b takes more than a."""
        return self.b.latency_s.point - self.a.latency_s.point

    @property
    def ratio(self) -> float:
        """Latency of b over that of a; infinite where a takes no time."""
        return self.b.latency_s.point / self.a.latency_s.point if self.a.latency_s.point else float("inf")

    @property
    def dearer(self) -> tuple[Change, ...]:
        """Op names that take longer in b, the worst first."""
        return tuple(sorted((c for c in self.by_op if c.delta_s > 0), key=lambda c: -c.delta_s))

    @property
    def cheaper(self) -> tuple[Change, ...]:
        """Op names that take less time in b, the best first."""
        return tuple(sorted((c for c in self.by_op if c.delta_s < 0), key=lambda c: c.delta_s))

    @property
    def overlap(self) -> bool:
        """Whether the two latency intervals overlap.

        On one device and runtime most of an interval is common to both, so that overlapping intervals do not make the
        difference doubtful; between devices they do.
        """
        a, b = self.a.latency_s, self.b.latency_s
        return a.low <= b.high and b.low <= a.high

    def as_dict(self) -> dict[str, Any]:
        """The object that ``compare --json`` prints: both estimates, and the changes as (a, b) pairs."""
        return {
            "schema": 1,
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "delta_s": self.delta_s,
            "ratio": self.ratio,
            "by_op": [asdict(c) for c in self.by_op],
            "by_module": [asdict(c) for c in self.by_module],
            "by_phase": [asdict(c) for c in self.by_phase],
            "at_peak": {role: list(pair) for role, pair in self.at_peak.items()},
            "peak": [asdict(p) for p in self.peak],
        }


def compare(a: Estimate, b: Estimate) -> Comparison:
    """Set estimate `b` beside `a`.

    Args:
        a: what was; the reference of every difference.
        b: what is new.

    Returns:
        The changes by op, by module and by phase, and how the peak of memory moved.
    """
    waits = (_waiting_s(a), _waiting_s(b))
    roles = dict.fromkeys((*a.footprint.at_peak, *b.footprint.at_peak))
    return Comparison(
        a=a,
        b=b,
        by_op=_changes(a.by_op(), b.by_op(), waits),
        by_module=_changes(a.by_module(), b.by_module(), waits),
        by_phase=_changes(a.by_phase(), b.by_phase(), waits),
        at_peak={r: (a.footprint.at_peak.get(r, 0), b.footprint.at_peak.get(r, 0)) for r in roles},
        peak=(Peak.of(a), Peak.of(b)),
    )


def _waiting_s(estimate: Estimate) -> float:
    """Seconds of the step in which the device runs nothing; what is left of rounding on a CPU is nothing."""
    idle = estimate.latency_s.point - float(np.sum(estimate.seconds))
    return idle if idle > 1e-9 * estimate.latency_s.point else 0.0


def _changes(a: Iterable[OpRow], b: Iterable[OpRow], waits: tuple[float, float]) -> tuple[Change, ...]:
    left, right = {r.op: r for r in a}, {r.op: r for r in b}
    none = OpRow(op="", count=0, latency_s=0.0, flops=0.0, bytes=0.0, bound="")
    changes = []
    for key in dict.fromkeys((*left, *right)):
        p, q = left.get(key, none), right.get(key, none)
        changes.append(
            Change(key, (p.count, q.count), (p.latency_s, q.latency_s), (p.flops, q.flops), (p.bytes, q.bytes))
        )
    if any(waits):
        changes.append(Change(WAITING, (0, 0), waits, (0.0, 0.0), (0.0, 0.0)))
    return tuple(sorted(changes, key=lambda c: (-abs(c.delta_s), c.key)))
