"""Points to fronts: which of many (accuracy, latency, memory, energy) choices are not beaten, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import CostmodelError, UnknownName
from .estimate import Range
from .sources import Source

__all__ = ["AXES", "Front", "Point", "pareto"]

# Cost axes, all minimised; the accuracy axis is minimised or maximised as its metric says.
AXES = ("latency_s", "peak_rss_bytes", "peak_live_bytes", "energy_j", "flops")


@dataclass(frozen=True)
class Point:
    """One choice: a model under a method, its accuracy measured, its costs predicted on one device.

    Attributes:
        name: what the point is called in a plot.
        family: ``irb``, ``vit``, ``ssm`` or the user's word.
        model, method, mode, batch: what was traced.
        metric: name of the accuracy figure, for example ``accuracy`` or ``bits/byte``.
        accuracy, accuracy_error: mean over seeds, and the standard error of that mean (0 if one seed).
        seeds: how many.
        higher_is_better: whether more of `metric` is better.
        device, runtime, threads: where the costs are predicted for.
        costs: predicted figures by axis, each with its interval; an axis without a sourced constant is left out.
        measured: figures measured on this machine, where it is the device.
        provenance: the data set of the accuracy.
        sources: files that the figures were read from: trace, task results, runs, profile, table.
    """

    name: str
    family: str
    model: str
    method: str
    mode: str
    batch: int
    metric: str
    accuracy: float
    accuracy_error: float
    seeds: int
    higher_is_better: bool
    device: str
    runtime: str
    costs: Mapping[str, Range]
    measured: Mapping[str, float] = field(default_factory=dict)
    threads: int = 1
    provenance: str = ""
    sources: tuple[Source, ...] = ()

    def loss(self) -> float:
        """The accuracy axis as a cost: smaller is better."""
        return -self.accuracy if self.higher_is_better else self.accuracy


@dataclass(frozen=True)
class Front:
    """Points on one device against one cost axis.

    Attributes:
        axis: the cost axis.
        points: all points that have it, cheapest first.
        optimal: whether no other point is at least as good on both axes and better on one.
        sure: for each optimal point, whether it stays optimal when every interval is taken at its worse end.
        knee: index of the point farthest from the line between the front's ends, or None.
        hypervolume: area that the front dominates, in axis × metric, up to the worst point of each.
        within_budget: index of the most accurate point whose upper bound is inside the budget, or None.
    """

    device: str
    axis: str
    points: tuple[Point, ...]
    optimal: tuple[bool, ...]
    sure: tuple[bool, ...]
    knee: int | None
    hypervolume: float
    budget: Mapping[str, float]
    within_budget: int | None

    @property
    def choices(self) -> tuple[tuple[float, int], ...]:
        """Which point to take under which budget on this axis: (the least limit that it is surely within, its index).

        Rising in both cost and accuracy; the last one is taken however large the budget is. A point is surely within
        a limit when the upper bound of its cost is.
        """
        found: list[tuple[float, int]] = []
        for i in sorted(range(len(self.points)), key=lambda i: (self.points[i].costs[self.axis].high, self._loss(i))):
            if not found or self._loss(i) < self._loss(found[-1][1]):
                found.append((self.points[i].costs[self.axis].high, i))
        return tuple(found)

    def _loss(self, i: int) -> float:
        return self.points[i].loss()


def pareto(
    points: Sequence[Point], *, axis: str = "latency_s", budget: Mapping[str, float] | None = None
) -> dict[str, Front]:
    """The front of each device among `points`.

    Args:
        points: of one metric (an accuracy is not compared with a perplexity).
        axis: the cost axis, one of `AXES`.
        budget: upper limits by axis, in SI units; tested on upper bounds.

    Returns:
        One front a device.
    """
    if axis not in AXES:
        raise UnknownName("cost axis", axis, AXES)
    for name in budget or {}:
        if name not in AXES:
            raise UnknownName("budget axis", name, AXES)
    metrics = {(p.metric, p.higher_is_better) for p in points}
    if len(metrics) > 1:
        raise CostmodelError(f"points of different metrics do not share a front: {sorted(m for m, _ in metrics)}")
    by_device: dict[str, list[Point]] = {}
    for point in points:
        if axis in point.costs:
            by_device.setdefault(point.device, []).append(point)
    return {device: _front(device, axis, members, dict(budget or {})) for device, members in by_device.items()}


def _front(device: str, axis: str, points: list[Point], budget: dict[str, float]) -> Front:
    from moocore import hypervolume, is_nondominated

    points.sort(key=lambda p: (p.costs[axis].point, p.loss()))
    values = np.array([[p.costs[axis].point, p.loss()] for p in points])
    optimal = np.asarray(is_nondominated(values, keep_weakly=True))
    reference = values.max(axis=0) + 1e-9 * np.abs(values.max(axis=0))
    return Front(
        device=device,
        axis=axis,
        points=tuple(points),
        optimal=tuple(bool(o) for o in optimal),
        sure=tuple(bool(o) and _stays(points, axis, i) for i, o in enumerate(optimal)),
        knee=_knee(values, optimal),
        hypervolume=float(hypervolume(values, ref=reference)),
        budget=budget,
        within_budget=_best_within(points, budget),
    )


def _stays(points: list[Point], axis: str, i: int) -> bool:
    """Whether point i is still not dominated when others may be as good as their intervals allow.

    The interval of a device's latencies is mostly common to all its points, so only what differs between two points
    counts: the accuracy by its standard errors, the cost by its point.
    """
    own = points[i]
    for j, other in enumerate(points):
        if j == i:
            continue
        spread = 2.0 * float(np.hypot(own.accuracy_error, other.accuracy_error))
        if other.costs[axis].point <= own.costs[axis].point and other.loss() - spread < own.loss():
            return False
    return True


def _knee(values: Any, optimal: Any) -> int | None:
    index = np.flatnonzero(optimal)
    if len(index) < 3:
        return None
    front = values[index]
    span = np.ptp(front, axis=0)
    if (span == 0).any():
        return None
    x, y = ((front - front.min(axis=0)) / span).T
    distance = (1.0 - x - y) / np.sqrt(2.0)  # to the line between the ends (0, 1) and (1, 0)
    best = int(np.argmax(distance))
    return int(index[best]) if distance[best] > 0 else None


def _best_within(points: list[Point], budget: dict[str, float]) -> int | None:
    if not budget:
        return None
    inside = [
        i for i, p in enumerate(points) if all(a in p.costs and p.costs[a].high <= limit for a, limit in budget.items())
    ]
    return min(inside, key=lambda i: points[i].loss(), default=None)
