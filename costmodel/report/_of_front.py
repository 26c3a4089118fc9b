"""A front as a sentence and a table."""

from __future__ import annotations

from .. import units
from ..pareto import Front, Point
from ._of_estimate import ranged
from ._of_validation import form_of, title_of
from ._table import Cell, Column, Table, cell

__all__ = ["accuracy", "budget_text", "choices_table", "front_answer", "front_table", "standing"]


def accuracy(point: Point) -> str:
    """The accuracy with its standard error where there is one."""
    error = f" ± {point.accuracy_error:.4f}" if point.seeds > 1 and point.accuracy_error == point.accuracy_error else ""
    return f"{point.accuracy:.4f}{error}"


def budget_text(front: Front) -> str:
    """The limits of a front, in people's units."""
    return ", ".join(f"{title_of(axis)} ≤ {form_of(axis)(limit)}" for axis, limit in front.budget.items())


def standing(front: Front, i: int) -> str:
    """What point i is on its front."""
    words = []
    if front.optimal[i]:
        words.append("optimal" if front.sure[i] else "optimal, within error bars")
    else:
        words.append("beaten")
    if i == front.knee:
        words.append("knee")
    if i == front.within_budget:
        words.append("best within budget")
    return ", ".join(words)


def front_answer(front: Front) -> str:
    """Which point to take, in a sentence."""
    if front.budget:
        limits = budget_text(front)
        if front.within_budget is None:
            return f"No point on {front.device} is surely within {limits}: no upper bound is inside."
        best = front.points[front.within_budget]
        costs = "; ".join(
            f"{title_of(a)} {ranged(best.costs[a], form_of(a))}" for a in dict.fromkeys((*front.budget, front.axis))
        )
        return f"Best within {limits} on {front.device}: {best.name}, {best.metric} {accuracy(best)}; {costs}."
    if not front.points:
        return f"No point on {front.device} has {title_of(front.axis)}."
    n, sure = sum(front.optimal), sum(front.sure)
    knee = "" if front.knee is None else f"; the knee is {front.points[front.knee].name}"
    of = f"{n} of {len(front.points)} points on {front.device} are optimal in {title_of(front.axis)}"
    return f"{of}, {sure} of them whatever the error bars{knee}."


def front_table(front: Front) -> Table:
    """One row a point, cheapest first."""
    form = form_of(front.axis)
    points = front.points
    measured = any(front.axis in p.measured for p in points)
    metric = points[0].metric if points else "accuracy"
    better = "" if not points else " ↑" if points[0].higher_is_better else " ↓"
    named = any(p.method != p.name for p in points)  # a column that repeats another takes the room of the last ones
    columns = [Column("point"), *([Column("method")] if named else [])]
    columns += [Column(f"{metric}{better}", True), Column("seeds", True)]
    columns += [Column(title_of(front.axis), True), Column("interval", True)]
    if measured:
        columns.append(Column("measured", True))
    columns.append(Column("standing"))
    rows = []
    for i, p in enumerate(points):
        cost = p.costs[front.axis]
        row: list[Cell] = [
            cell(p.name),
            *([cell(p.method)] if named else []),
            cell(accuracy(p), p.accuracy),
            cell(p.seeds, p.seeds),
            cell(form(cost.point), cost.point),
            cell(f"{form(cost.low)} – {form(cost.high)}", cost.high - cost.low),
        ]
        if measured:
            m = p.measured.get(front.axis)
            row.append(cell(None) if m is None else cell(form(m), m))
        row.append(cell(standing(front, i)))
        rows.append(tuple(row))
    volume = f"Hypervolume {front.hypervolume:.4g} ({front.axis} × {metric}), up to the worst point of each axis."
    return Table(
        f"{points[0].family if points else 'points'} on {front.device}: {metric} against {title_of(front.axis)}",
        tuple(columns),
        tuple(rows),
        note=volume if len(points) > 1 else "",
    )


def choices_table(front: Front) -> Table | None:
    """Which point to take under which budget; None without points."""
    if not front.points:
        return None
    form, metric = form_of(front.axis), front.points[0].metric
    rows = []
    for limit, i in front.choices:
        point = front.points[i]
        cost = point.costs[front.axis]
        rows.append(
            (
                cell(f"from {form(limit)}", limit),
                cell(point.name),
                cell(accuracy(point), point.accuracy),
                cell(ranged(cost, form), cost.point),
            )
        )
    least = front.choices[0][0]
    axis = title_of(front.axis)
    return Table(
        f"Which to take under which budget of {axis} on {front.device}",
        (Column(f"budget of {axis}", True), Column("take"), Column(metric, True), Column("predicted", True)),
        tuple(rows),
        note=f"Tested on upper bounds: under {form(least)} none is surely within.",
    )


def runs_table(fronts: tuple[Front, ...]) -> Table | None:
    """Where each point's accuracy and traces come from; None without points."""
    seen: dict[tuple[str, str, str], Point] = {}
    for front in fronts:
        for p in front.points:
            seen.setdefault((p.family, p.name, p.device), p)
    if not seen:
        return None
    rows = tuple(
        (
            cell(p.family),
            cell(p.name),
            cell(units.count(p.seeds), p.seeds),
            cell(p.provenance),
            cell(", ".join(s.file for s in p.sources)),
        )
        for p in seen.values()
    )
    return Table(
        "Where the points come from",
        (Column("family"), Column("point"), Column("seeds", True), Column("data"), Column("files")),
        rows,
    )
