"""An estimate as sentences and tables, for whatever format draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from .. import units
from ..core.malloc import PAGE
from ..device import Device
from ..estimate import Estimate, OpRow, Range
from ..footprint import AT_PEAK
from ._sensitivity import Hinge, hinges
from ._table import Cell, Column, Table, cell, column_in, rows_of, share_column

__all__ = [
    "MODES", "answer", "caveat", "device_table", "fit_verdict", "gaps_table", "headline",
    "hinges_table", "holders_table", "interval_source", "memory_table", "modules_table", "name_of",
    "ops_table", "phases_table", "ranged", "short_module", "single_ops_table",
]  # fmt: skip

MODES = {
    "infer": "One inference of",
    "train": "One training step of",
    "prefill": "One prefill of",
    "decode": "One decoded token of",
}
WAITING = "(waiting for issue)"
# An elasticity below this moves a figure by less than a digit that is printed.
_MATTERS = 5e-3
Fit = Literal["fits", "probably fits", "probably does not fit", "does not fit"]


def ranged(value: Range, form: object = units.seconds) -> str:
    """``point (low – high)`` by a formatter of `units`."""
    assert callable(form)
    return f"{form(value.point)} ({form(value.low)} – {form(value.high)})"


def name_of(estimate: Estimate) -> str:
    """Model, method, mode and batch; what tells estimates of one device apart."""
    meta = estimate.graph.meta
    return " ".join(filter(None, (meta.model or "model", meta.method, meta.mode, f"b{meta.batch}")))


def fit_verdict(estimate: Estimate) -> tuple[Fit, Range, float]:
    """Whether the step fits: in words, the bytes that must fit, and the bytes that there are."""
    engine = estimate.device.runtime[estimate.runtime].engine
    need = estimate.memory.peak_reserved if engine == "gpu" else estimate.memory.peak_rss
    room = estimate.device.usable_bytes(engine)
    if need.high <= room:
        return "fits", need, room
    if need.point <= room:
        return "probably fits", need, room
    return ("does not fit" if need.low > room else "probably does not fit"), need, room


def answer(estimate: Estimate) -> str:
    """The estimate in one sentence, with its interval."""
    meta = estimate.graph.meta
    runtime = estimate.device.runtime[estimate.runtime]
    details = ", ".join(filter(None, (meta.method, f"batch {meta.batch}", meta.dtype, meta.optimizer)))
    threads = "" if runtime.engine == "gpu" else f", {estimate.threads} thread{'s' if estimate.threads > 1 else ''}"
    fits, need, room = fit_verdict(estimate)
    what = "reserved" if runtime.engine == "gpu" else "resident"
    return (
        f"{MODES[meta.mode]} {meta.model or 'the model'} ({details}) takes {ranged(estimate.latency_s)} on "
        f"{estimate.device.title}, {runtime.title}{threads}; its peak of {units.size(need.point)} {what} "
        f"({units.size(need.low)} – {units.size(need.high)}) {fits} in {units.size(room)}."
    )


def interval_source(estimate: Estimate) -> str:
    """What the latency interval rests on."""
    runtime = estimate.device.runtime[estimate.runtime]
    interval = runtime.interval.get(estimate.graph.meta.mode) or runtime.interval["default"]
    why = estimate.device.sources.get(interval.source, interval.source)
    cases = f"{interval.cases} cases" if interval.cases else "no cases"
    return f"{units.percent(interval.coverage, 0)} interval, {interval.kind}, {cases}: {why}"


def headline(estimate: Estimate) -> list[tuple[str, str]]:
    """The figures of the first screen, label and text."""
    memory = estimate.memory
    energy = "no sourced constants" if estimate.energy_j is None else ranged(estimate.energy_j, units.joules)
    fits, _, room = fit_verdict(estimate)
    baseline = estimate.baseline_latency_s
    faults, far = page_faults(estimate), far_out(estimate)
    return [
        ("latency", ranged(estimate.latency_s)),
        *([("of it, page faults", faults)] if faults else []),
        ("plain roofline", f"{units.seconds(baseline)} (peak rates, no constants fitted)"),
        ("memory, live", ranged(memory.peak_live, units.size)),
        ("memory, reserved", ranged(memory.peak_reserved, units.size)),
        ("memory, resident", ranged(memory.peak_rss, units.size)),
        ("fits", f"{fits}: {units.size(room)} usable"),
        ("energy", energy),
        ("FLOPs", f"{units.flops(estimate.flops)} ({estimate.flops:,})"),
        ("bytes moved", f"{units.size(estimate.bytes_moved)} by ops, at whatever level"),
        ("peak held by", peak_holder(estimate)),
        ("priced by formula", priced(estimate)),
        *([("beyond the calibration", far)] if far else []),
    ]


def page_faults(estimate: Estimate) -> str:
    """What giving memory back and taking it again costs, where that is more than a hundredth of the step; that it is
    not known, where a calibration timed ops with memory kept and did not measure it; that ``pinned`` has no effect.
    """
    runtime = estimate.device.runtime[estimate.runtime]
    if estimate.allocator == "pinned" and runtime.page_fault_s is None and not runtime.fit:
        return "no part of this estimate: the profile has no page_fault_s, so that --allocator pinned changes nothing"
    if estimate.allocator == "default" and runtime.fit and runtime.page_fault_s is None:
        return "not priced: the profile has no page_fault_s, and its ops were timed with memory kept; calibrate again"
    faults_s, whole = estimate.page_faults_s, estimate.latency_s.point
    if estimate.fresh is None or faults_s < 0.01 * whole:
        return ""
    pages = units.count(round(float(estimate.fresh.sum()) / PAGE))
    return (
        f"{units.seconds(faults_s)}, {units.percent(faults_s / whole)}: about {pages} pages a step that malloc gives "
        "back and takes again; none where it keeps them (--allocator pinned)"
    )


def peak_holder(estimate: Estimate) -> str:
    """During which op live bytes peak, and the largest holder then."""
    graph, memory = estimate.graph, estimate.footprint
    if memory.peak_op < 0:
        where = "before the first op"
    else:
        k = memory.peak_op
        where = f"op {k + 1:,} of {len(graph):,}, {_op(graph.op_name[k])} in {short_module(graph.op_module[k])}"
        where += f" ({graph.op_phase[k]})"
    if not memory.holders:
        return where
    largest = memory.holders[0]
    return (
        f"{where}; largest: {units.size(largest.bytes)} {largest.role.replace('_', ' ')} {_made_by(largest)}".rstrip()
    )


def priced(estimate: Estimate) -> str:
    """Coverage in words."""
    c = estimate.coverage
    if not c.unpriced:
        return f"all {units.count(len(estimate.graph))} ops"
    return (
        f"{units.percent(c.ops)} of ops, {units.percent(c.time)} of time; {len(c.unpriced)} kinds of gap, listed below"
    )


def far_out(estimate: Estimate, most: int = 3) -> str:
    """Which terms of which algorithm classes are far out of what was calibrated, and what they are of the time."""
    whole = estimate.latency_s.point
    return "; ".join(
        f"{b.kind}: {b.term} up to {b.times:,.0f} times the largest calibrated in {units.count(b.ops)} ops, "
        f"{units.percent(b.seconds / whole)} of the time"
        for b in estimate.beyond_calibration[:most]
    )


def caveat(estimate: Estimate, most: int = 3) -> str:
    """What the estimate hangs on that is a guess: what data decides, and the device numbers that matter most."""
    assumed = estimate.graph.meta.assumed
    taken = f"Assumed where the trace cannot know: {assumed}. " if assumed else ""
    return taken + _guesses(estimate, most)


def _guesses(estimate: Estimate, most: int) -> str:
    used = [h for h in hinges(estimate) if abs(h.elasticity) > _MATTERS]
    guesses = [h for h in used if h.number.kind == "guess"]
    if not guesses:
        return f"None of the {len(used)} device numbers that this latency hangs on is a guess."
    worst = ", ".join(f"{h.place} (10 % off moves it {abs(10 * h.elasticity):.1f} %)" for h in guesses[:most])
    rest = f", and {len(guesses) - most} more" if len(guesses) > most else ""
    return f"{len(guesses)} of the {len(used)} device numbers that this latency hangs on are guesses: {worst}{rest}."


def _op(name: str) -> str:
    """``aten::add_.Tensor`` without the namespace that nearly all share."""
    return name.removeprefix("aten::")


def short_module(path: str) -> str:
    """A module path for a sentence."""
    return path or "(root)"


def _made_by(holder: object) -> str:
    name, op, module = (str(getattr(holder, k)) for k in ("name", "op", "module"))
    return name or (f"of {_op(op)} in {short_module(module)}" if op else "")


# Tables


def _rows_table(estimate: Estimate, rows: list[OpRow], title: str, heading: str, top: int | None) -> Table:
    """Rows of ops, the cheapest folded into one, and what the device waits for."""
    shown = rows if top is None or len(rows) <= top + 1 else rows[:top]
    folded = rows[len(shown) :]
    labels = [cell(_op(r.op)) for r in shown]
    if folded:
        shown = [
            *shown,
            OpRow(
                op="", count=sum(r.count for r in folded), latency_s=math.fsum(r.latency_s for r in folded),
                flops=math.fsum(r.flops for r in folded), bytes=math.fsum(r.bytes for r in folded), bound="",
            ),
        ]  # fmt: skip
        labels.append(cell(f"{len(folded)} more"))
    idle = estimate.latency_s.point - math.fsum(r.latency_s for r in rows)
    if idle > 1e-9 * estimate.latency_s.point:
        shown = [*shown, OpRow(op="", count=0, latency_s=idle, flops=0.0, bytes=0.0, bound="issue")]
        labels.append(cell(WAITING))
    columns, total = [Column(heading)], [cell("total")]
    bodies = [labels]
    for column, cells, sum_ in (
        column_in("count", "ops", [r.count for r in shown]),
        column_in("time", "time", [r.latency_s for r in shown]),
        share_column([r.latency_s for r in shown]),
        column_in("flops", "work", [r.flops for r in shown]),
        column_in("bytes", "moved", [r.bytes for r in shown]),
    ):
        columns.append(column)
        bodies.append(cells)
        total.append(sum_)
    columns.append(Column("bound by"))
    bodies.append([cell(r.bound) for r in shown])
    total.append(cell(""))
    return Table(title, tuple(columns), rows_of(*bodies), tuple(total))


def ops_table(estimate: Estimate, top: int | None = 10) -> Table:
    """Op names, the dearest first: count, time, share, FLOPs, bytes, bound. All of them where `top` is None."""
    return _rows_table(estimate, estimate.by_op(), "Where the time goes", "op", top)


def modules_table(estimate: Estimate, top: int | None = 10, depth: int = 2) -> Table:
    """Modules to a depth, the dearest first."""
    return _rows_table(estimate, estimate.by_module(depth), "By module", "module", top)


def single_ops_table(estimate: Estimate, top: int = 120) -> Table:
    """Ops one by one, the dearest first, the others as one row: position in the step, name and module."""
    graph, lowered = estimate.graph, estimate.lowered
    rows = [
        OpRow(
            op=f"#{k + 1} {_op(graph.op_name[k])} · {short_module(graph.op_module[k])}",
            count=1,
            latency_s=float(estimate.seconds[k]),
            flops=float(lowered.table.flops[k]),
            bytes=float(lowered.op_bytes[k]),
            bound=estimate.bound_of(k),
        )
        for k in np.argsort(-estimate.seconds, kind="stable").tolist()
    ]
    return _rows_table(estimate, rows, "Single ops", "op", top)


def phases_table(estimate: Estimate) -> Table:
    """Forward, backward, optimizer."""
    return _rows_table(estimate, estimate.by_phase(), "By phase", "phase", None)


def memory_table(estimate: Estimate) -> Table:
    """Bytes at the peak by role; adds up to the peak of live bytes."""
    held = [(role, b) for role, b in estimate.footprint.at_peak.items() if b]
    values = [float(b) for _, b in held]
    column, cells, total = column_in("bytes", "held", values)
    shares, share_cells, share_total = share_column(values)
    return Table(
        "Live bytes at the peak",
        (Column("role"), column, shares),
        rows_of([cell(r.replace("_", " ")) for r, _ in held], cells, share_cells),
        (cell("peak, live"), total, share_total),
        note=" ".join(_memory_notes(estimate)),
    )


def _memory_notes(estimate: Estimate) -> Iterator[str]:
    """Where the peak is, that of the first step, and what the resident bytes of a CPU process are made of."""
    f = estimate.footprint
    yield f"The peak is at {peak_holder(estimate)}."
    if f.first_peak_live != f.peak_live:
        yield f"In the first step, which starts without the optimizer's state, it is {units.size(f.first_peak_live)}."
    if estimate.device.runtime[estimate.runtime].engine == "cpu":
        parts = f.resident
        yield (
            f"Resident are {units.size(parts['runtime'])} of the runtime, of which shared with other processes: "
            f"{units.size(f.shared)} of library files{_largest_files(estimate)}; and "
            f"{units.size(parts['allocator'])} of malloc"
            + (f", {units.size(parts['loading'])} more while the model is loaded" if parts["loading"] else "")
            + (f", {units.size(parts['scratch'])} of kernels' scratch" if parts["scratch"] else "")
            + "."
        )


def _largest_files(estimate: Estimate, top: int = 3) -> str:
    """Of what processes share, the files that the profile knows."""
    files = estimate.device.runtime[estimate.runtime].shared_files
    largest = sorted(files.items(), key=lambda item: -item[1].value)[:top]
    named = ", ".join(f"{name} {units.size(number.value)}" for name, number in largest)
    return f" (the largest are {named})" if named else ""


def holders_table(estimate: Estimate, top: int = 10) -> Table:
    """The largest storages that are live at the peak, and all the others as one row."""
    holders = estimate.footprint.holders[:top]
    values = [float(h.bytes) for h in holders]
    labels = [(AT_PEAK[h.role].replace("_", " "), _made_by(h) or "–") for h in holders]
    rest = estimate.footprint.peak_live - sum(h.bytes for h in holders)
    if rest:
        values.append(float(rest))
        labels.append(("others", "smaller storages and workspace"))
    column, cells, total = column_in("bytes", "held", values)
    return Table(
        "Who holds the peak",
        (Column("role"), Column("held by"), column),
        rows_of([cell(r) for r, _ in labels], [cell(n) for _, n in labels], cells),
        (cell("peak, live"), cell(""), total),
    )


def gaps_table(estimate: Estimate) -> Table | None:
    """Ops without a price by formula, by name, or None where there are none."""
    gaps = estimate.coverage.unpriced
    if not gaps:
        return None
    n = len(estimate.graph)
    column, cells, total = column_in("count", "ops", [float(c) for c in gaps.values()])
    return Table(
        "Ops without a formula (priced by the bytes of their inputs and outputs)",
        (Column("op"), column, Column("of all ops / %", True)),
        rows_of([cell(name) for name in gaps], cells, [cell(f"{100 * c / n:.1f}", c / n) for c in gaps.values()]),
        (cell("total"), total, cell(f"{100 * sum(gaps.values()) / n:.1f}", sum(gaps.values()) / n)),
        note=f"The widened interval counts them: they are {units.percent(1 - estimate.coverage.time)} of the time.",
    )


def _number_row(hinge: Hinge, device: Device) -> tuple[Cell, ...]:
    number = hinge.number
    return (
        cell(hinge.place),
        cell(f"{number.value:.6g}", number.value),
        cell(number.kind),
        cell(
            f"{hinge.elasticity:+.3f}".replace("-", "−") if abs(hinge.elasticity) > _MATTERS else "0",
            abs(hinge.elasticity),
        ),
        cell(f"{number.source}: {device.sources[number.source]}" if number.source in device.sources else number.source),
    )


_NUMBER_COLUMNS = (
    Column("number"), Column("value / SI", True), Column("kind"), Column("elasticity", True), Column("source")
)  # fmt: skip


def hinges_table(estimate: Estimate) -> Table:
    """The device numbers that the latency hangs on, the strongest first."""
    rows = [h for h in hinges(estimate) if abs(h.elasticity) > _MATTERS]
    return Table(
        "Device numbers that this latency hangs on",
        _NUMBER_COLUMNS,
        tuple(_number_row(h, estimate.device) for h in rows),
        note="Elasticity: by how many per cent the latency moves where the number moves by one per cent. "
        "`costmodel calibrate` replaces guesses with measurements.",
    )


def device_table(device: Device) -> Table:
    """Every number of a device with value, kind and source."""
    keep = (0, 1, 2, 4)
    numbers = device.numbers()
    kinds = [n.kind for _, n in numbers]
    counted = ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds)))
    rows = [_number_row(Hinge(place, number, 0.0), device) for place, number in numbers]
    return Table(
        device.title,
        tuple(_NUMBER_COLUMNS[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        note=f"{len(numbers)} numbers: {counted}.",
    )
