"""Comparisons and budget checks as sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .. import units
from ..budget import LIMITS, Check
from ..compare import WAITING, Change, Comparison, Peak
from ..estimate import Estimate
from ._of_estimate import name_of, ranged, short_module
from ._of_validation import form_of, signed_percent
from ._table import Cell, Column, Table, before_and_after, cell, column_in, rows_of

__all__ = [
    "changes_table",
    "checks_answer",
    "checks_table",
    "comparison_answer",
    "limit_form",
    "peak_move",
    "peak_table",
    "sides_table",
]


def _label(estimate: Estimate) -> str:
    return f"{name_of(estimate)} on {estimate.device.name}"


def comparison_answer(c: Comparison) -> str:
    """What got dearer, in a sentence."""
    if c.delta_s == 0:
        return f"{_label(c.b)} takes as long as {_label(c.a)}: {ranged(c.b.latency_s)}."
    word = "longer" if c.delta_s > 0 else "less"
    movers = c.dearer if c.delta_s > 0 else c.cheaper
    most = f", most of it {movers[0].key.removeprefix('aten::')} ({_signed_s(movers[0].delta_s)})" if movers else ""
    return (
        f"{_label(c.b)} takes {units.seconds(abs(c.delta_s))} {word} than {_label(c.a)} "
        f"({c.ratio:.2f}×: {units.seconds(c.a.latency_s.point)} to {units.seconds(c.b.latency_s.point)}){most}."
    )


def peak_move(c: Comparison) -> str:
    """Where the peak of live bytes was and is."""
    a, b = c.peak
    delta = b.bytes - a.bytes
    return (
        f"Peak live bytes: {units.size(a.bytes)} at {_place(a)}; now {units.size(b.bytes)} at {_place(b)} "
        f"({'+' if delta >= 0 else '−'}{units.size(abs(delta))})."
    )


def _place(peak: Peak) -> str:
    if peak.position < 0:
        return "the start, before the first op"
    module = short_module(peak.module)
    return f"op {peak.position + 1:,} of {peak.ops:,}, {peak.op.removeprefix('aten::')} in {module} ({peak.phase})"


def _signed_s(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{units.seconds(abs(value))}"


def sides_table(c: Comparison) -> Table:
    """Both estimates, figure by figure."""
    rows: list[tuple[Cell, ...]] = []
    pairs = (
        ("latency", c.a.latency_s, c.b.latency_s, units.seconds),
        ("memory, live", c.a.memory.peak_live, c.b.memory.peak_live, units.size),
        ("memory, reserved", c.a.memory.peak_reserved, c.b.memory.peak_reserved, units.size),
        ("memory, resident", c.a.memory.peak_rss, c.b.memory.peak_rss, units.size),
        ("energy", c.a.energy_j, c.b.energy_j, units.joules),
    )
    for label, a, b, form in pairs:
        texts = ["no sourced constants" if v is None else ranged(v, form) for v in (a, b)]
        ratio = "–" if a is None or b is None or not a.point else f"{b.point / a.point:.2f}×"
        rows.append((cell(label), cell(texts[0]), cell(texts[1]), cell(ratio)))
    for label, x, y, count in (
        ("FLOPs", c.a.flops, c.b.flops, units.flops),
        ("bytes moved", c.a.bytes_moved, c.b.bytes_moved, units.size),
        ("ops", len(c.a.graph), len(c.b.graph), units.count),
    ):
        rows.append((cell(label), cell(count(x)), cell(count(y)), cell(f"{y / x:.2f}×" if x else "–")))
    return Table(
        "Side by side",
        (Column("figure"), Column("a", True), Column("b", True), Column("b / a", True)),
        tuple(rows),
        note=f"a is {_label(c.a)}, b is {_label(c.b)}."
        + (
            " The latency intervals overlap; on one device and runtime most of an interval is common to both."
            * c.overlap
        ),
    )


def changes_table(changes: Sequence[Change], heading: str = "op", top: int | None = 12) -> Table:
    """Changes, the largest first, the rest folded into one row; the differences add up to that of the two totals."""
    shown = list(changes if top is None or len(changes) <= top + 1 else changes[:top])
    folded = changes[len(shown) :]
    labels = [cell(c.key.removeprefix("aten::")) for c in shown]
    if folded:
        labels.append(cell(f"{len(folded)} more"))
        shown.append(
            Change(
                key="",
                count=(sum(c.count[0] for c in folded), sum(c.count[1] for c in folded)),
                latency_s=(
                    math.fsum(c.latency_s[0] for c in folded), math.fsum(c.latency_s[1] for c in folded)
                ),
                flops=(0.0, 0.0),
                bytes=(0.0, 0.0),
            )
        )  # fmt: skip
    columns, bodies, total = [Column(heading)], [labels], [cell("total")]
    for column, cells, sum_ in (
        column_in("count", "ops in a", [c.count[0] for c in shown]),
        column_in("count", "ops in b", [c.count[1] for c in shown]),
        *before_and_after("time", [c.latency_s[0] for c in shown], [c.latency_s[1] for c in shown]),
    ):
        columns.append(column)
        bodies.append(cells)
        total.append(sum_)
    note = (
        f"{WAITING[1:-1]}: the device is idle until the host has issued the next op."
        if any(c.key == WAITING for c in changes)
        else ""
    )
    return Table("What changed", tuple(columns), rows_of(*bodies), tuple(total), note=note)


def peak_table(c: Comparison) -> Table:
    """Bytes at the peak by role, in both."""
    roles = [role for role, pair in c.at_peak.items() if any(pair)]
    a, b, difference = before_and_after(
        "bytes", [float(c.at_peak[r][0]) for r in roles], [float(c.at_peak[r][1]) for r in roles]
    )
    return Table(
        "Live bytes at the peak",
        (Column("role"), a[0], b[0], difference[0]),
        rows_of([cell(r.replace("_", " ")) for r in roles], a[1], b[1], difference[1]),
        (cell("peak, live"), a[2], b[2], difference[2]),
        note=peak_move(c),
    )


def limit_form(check: Check) -> Callable[[float], str]:
    """The formatter of a limit: hours where a job takes them."""
    dimension, axis = LIMITS[check.limit_name]
    return units.duration if dimension == "time" else form_of(axis)


def checks_answer(checks: Sequence[Check]) -> str:
    """The verdict over all limits, in a sentence."""
    over = [c for c in checks if c.verdict == "over"]
    unknown = [c for c in checks if c.verdict == "unknown"]
    text = f"{len(checks) - len(over) - len(unknown)} of {len(checks)} limits hold on the upper bound"
    if over:
        worst = max(over, key=lambda c: c.over or 0.0)
        text += f"; {len(over)} over, the worst {worst.limit_name} of {worst.model} on {worst.device} by "
        text += units.percent(worst.over or 0.0)
    if unknown:
        text += f"; {len(unknown)} cannot be tested: the profile has no sourced constants"
    return text + "."


def checks_table(checks: Sequence[Check]) -> Table:
    """One row a limit: predicted, upper bound, limit, and by how much it is over or what room is left."""
    rows = []
    for c in checks:
        form = limit_form(c)
        what = " ".join(filter(None, (c.model, c.method, c.mode, f"b{c.batch}")))
        over = c.over
        room = cell(None) if over is None else cell(signed_percent(over), over)
        rows.append(
            (
                cell(what),
                cell(c.device),
                cell(c.limit_name.replace("_", ", ")),
                cell(None) if c.predicted is None else cell(form(c.predicted.point), c.predicted.point),
                cell(None) if c.predicted is None else cell(form(c.predicted.high), c.predicted.high),
                cell(form(c.limit), c.limit),
                room,
                cell("OVER, surely" if c.surely_over else "OVER" if c.verdict == "over" else c.verdict),
            )
        )
    return Table(
        "Budget",
        (
            Column("step"), Column("device"), Column("limit on"), Column("predicted", True),
            Column("upper bound", True), Column("limit", True), Column("over by", True), Column("verdict"),
        ),
        tuple(rows),
        note="Tested on the upper bound. Surely: the lower bound is over, too.",
    )  # fmt: skip
