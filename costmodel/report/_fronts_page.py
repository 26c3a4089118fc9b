"""All fronts on one page of Markdown: what each family's points cost where, which to take, and what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from .. import units
from ..pareto import Front, Point
from ._of_front import accuracy
from ._of_validation import form_of, signed_percent, title_of
from ._table import Cell, Column, Table, cell
from .markdown import markdown_table, plain

if TYPE_CHECKING:
    from ..device import Device
    from ..tasks.ordering import Step

__all__ = ["fronts_page"]

_INTRO = """# Fronts: which method, how much of it, on which device

Accuracies are real runs; costs are predictions of one step on each device, and measured is the same step run on the
device, where it is a machine of ours. A point is *optimal* where no other is at least as good on both axes and better
on one; a star says that this does not stand if accuracies err by two standard errors. A budget is tested on the upper
bound of the interval: "from 90 ms: X" means that X is surely within 90 ms, and is the best that is.

Written by `costmodel report` from what is kept (`costmodel pareto --family irb|vit|ssm --grid … --measure DEVICE
--keep` keeps results, traces and runs). Every figure is in [index.json](index.json) beside the files that it was read
from; whole tables are in [fronts-tables.md](fronts-tables.md), pictures beside this page."""


def fronts_page(fronts: Sequence[Front], steps: Sequence[Step], devices: Sequence[Device]) -> str:
    """The page.

    Args:
        fronts: of several families, devices and axes, all with points.
        steps: published orderings against our runs.
        devices: that the fronts are of, for their titles.
    """
    named = {d.name: d for d in devices}
    titles = {d.name: d.title for d in devices}
    parts = [_INTRO]
    for family in dict.fromkeys(f.points[0].family for f in fronts):
        own = [f for f in fronts if f.points[0].family == family]
        point = own[0].points[0]
        parts += [
            f"## {family}: {plain(_models(own))}",
            f"{plain(_what(point))} Data: {plain(point.provenance)}.",
            markdown_table(_points_table(own, named)),
            markdown_table(_choices_table(own, titles)),
            *(markdown_table(t) for t in (_agreement_table(own, titles),) if t is not None),
        ]
        of_family = [s for s in steps if s.claim.family == family]
        if of_family:
            parts += [plain(_verdict(of_family)), markdown_table(_ordering_table(of_family, point))]
    return "\n\n".join(parts) + "\n"


def _models(fronts: Sequence[Front]) -> str:
    """Each model of a family once, without the settings in braces."""
    return "; ".join(dict.fromkeys(p.model.split(" {")[0].strip() for f in fronts for p in f.points))


def _what(point: Point) -> str:
    step = "A training step" if point.mode == "train" else f"A step of mode {point.mode}"
    better = "more is better" if point.higher_is_better else "less is better"
    return f"{step} of batch {point.batch}; {point.metric} ({better}), {point.seeds} seeds, mean ± standard error."


def _latency(fronts: Sequence[Front]) -> list[Front]:
    return [f for f in fronts if f.axis == "latency_s"]


def _points_table(fronts: Sequence[Front], devices: Mapping[str, Device]) -> Table:
    """An arm a row: its accuracy, latency on each device, measured latency, live memory, and where it is optimal."""
    by_latency = _latency(fronts)
    first = by_latency[0]
    measured = [f for f in by_latency if any("latency_s" in p.measured for p in f.points)]
    better = "↑" if first.points[0].higher_is_better else "↓"
    columns = [Column("arm"), Column(f"{first.points[0].metric.split(' on ')[0].split(',')[0]} {better}", True)]
    columns += [Column(_where(f, devices), True) for f in by_latency]
    columns += [Column(f"measured on {f.device}", True) for f in measured]
    columns += [Column("peak live", True), Column("optimal in")]
    rows = []
    for p in first.points:
        row: list[Cell] = [cell(p.name), cell(accuracy(p), p.accuracy)]
        here = [_of_arm(f, p.name) for f in by_latency]
        row += [cell(None) if q is None else cell(units.seconds(q.costs["latency_s"].point)) for q in here]
        for front in measured:
            q = _of_arm(front, p.name)
            value = None if q is None else q.measured.get("latency_s")
            row.append(cell(None) if value is None else cell(units.seconds(value), value))
        live = p.costs.get("peak_live_bytes")
        row.append(cell(None) if live is None else cell(units.size(live.point), live.point))
        row.append(cell(", ".join(_optimal_in(fronts, p.name))))
        rows.append(tuple(row))
    note = "peak live is of the first device. Optimal in: device and axis; * only within the error bars."
    return Table("Points, cheapest on the first device first", tuple(columns), tuple(rows), note=note)


def _where(front: Front, devices: Mapping[str, Device]) -> str:
    """The device, and its GPU or the threads of its CPU."""
    point = front.points[0]
    device = devices.get(front.device)
    if device is not None and device.runtime[point.runtime].engine == "gpu":
        return f"{front.device}, GPU"
    return f"{front.device}, {point.threads} thread{'s' if point.threads > 1 else ''}"


def _of_arm(front: Front, name: str) -> Point | None:
    return next((p for p in front.points if p.name == name), None)


def _optimal_in(fronts: Sequence[Front], name: str) -> list[str]:
    """Axes in which an arm is optimal, with the devices where it is not all of them."""
    words = []
    for axis in dict.fromkeys(f.axis for f in fronts):
        of_axis = [f for f in fronts if f.axis == axis]
        at = [(f, i) for f in of_axis for i, p in enumerate(f.points) if p.name == name and f.optimal[i]]
        if not at:
            continue
        marks = [f"{f.device}{'' if f.sure[i] else '*'}" for f, i in at]
        everywhere = len(at) == len(of_axis) and len({f.sure[i] for f, i in at}) == 1
        star = "" if at[0][0].sure[at[0][1]] else "*"
        words.append(f"{title_of(axis)}{star}" if everywhere else f"{title_of(axis)} ({', '.join(marks)})")
    return words


def _choices_table(fronts: Sequence[Front], titles: dict[str, str]) -> Table:
    """A device and axis a row: which point to take under which budget."""
    rows = []
    for front in fronts:
        form = form_of(front.axis)
        chosen = "; ".join(f"from {form(limit)}: {front.points[i].name}" for limit, i in front.choices)
        knee = None if front.knee is None else front.points[front.knee].name
        rows.append(
            (
                cell(titles.get(front.device, front.device)),
                cell(title_of(front.axis)),
                cell(chosen),
                cell(knee),
                cell(f"{front.hypervolume:.3g}", front.hypervolume),
            )
        )
    columns = (Column("device"), Column("budget of"), Column("take"), Column("knee"), Column("hypervolume", True))
    return Table("Which wins under which budget", columns, tuple(rows))


def _agreement_table(fronts: Sequence[Front], titles: dict[str, str]) -> Table | None:
    """Predicted against measured costs of the points, a device and axis a row; None where nothing was measured."""
    rows = []
    for front in fronts:
        pairs = [(p, p.costs[front.axis], p.measured[front.axis]) for p in front.points if front.axis in p.measured]
        if not pairs:
            continue
        errors = [c.point / m - 1.0 for _, c, m in pairs]
        worst = max(range(len(pairs)), key=lambda k: abs(errors[k]))
        inside = sum(c.low <= m <= c.high for _, c, m in pairs)
        rows.append(
            (
                cell(titles.get(front.device, front.device)),
                cell(title_of(front.axis)),
                cell(len(pairs), len(pairs)),
                cell(units.percent(median(map(abs, errors)))),
                cell(f"{signed_percent(errors[worst])} ({pairs[worst][0].name})"),
                cell(f"{inside} of {len(pairs)}"),
            )
        )
    if not rows:
        return None
    columns = (
        Column("device"), Column("cost"), Column("points", True), Column("median error", True), Column("worst", True),
        Column("in interval", True),
    )  # fmt: skip
    return Table("Predicted against measured", columns, tuple(rows))


def _verdict(steps: Sequence[Step]) -> str:
    n = {word: sum(s.verdict == word for s in steps) for word in dict.fromkeys(s.verdict for s in steps)}
    return (
        "Published orderings: of " + f"{len(steps)} steps, " + ", ".join(f"{k} {word}" for word, k in n.items()) + "."
    )


def _ordering_table(steps: Sequence[Step], point: Point) -> Table:
    """A step of a published chain a row: what was published, and the difference in our runs."""
    rows = []
    for k, step in enumerate(steps):
        again = k > 0 and steps[k - 1].claim is step.claim
        error = "" if math.isnan(step.error) else f" ± {step.error:.4f}"
        sign = "+" if step.gain >= 0 else "−"
        rows.append(
            (
                cell("″" if again else step.claim.text),
                cell(f"{step.worse} {'≈' if step.claim.alike else '<'} {step.better}"),
                cell(f"{sign}{abs(step.gain):.4f}{error}", step.gain),
                cell(step.verdict),
            )
        )
    columns = (Column("published"), Column("step"), Column(f"gain in {point.metric}", True), Column("in our runs"))
    note = (
        "Gain of the second over the first, positive where the second is better, paired by seed ± standard error; "
        "a gain within two standard errors is a tie."
    )
    return Table("Published orderings against our runs", columns, tuple(rows), note=note)
