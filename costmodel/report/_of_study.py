"""What stands beside the cases of a validation, as tables: phases and groups, ablation, classes, what is not scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .. import units
from ..validate import Case, Validation, summarize
from ._of_validation import form_of, signed_percent
from ._table import Cell, Column, Table, cell

__all__ = ["ablation_table", "classes_table", "groups_table", "provenance_table", "study_tables", "unscored_table"]

_PHASES = {"infer": "inference", "train": "training"}


def study_tables(v: Validation) -> list[Table]:
    """Every table that there is something for, in the order in which they are read."""
    found = (groups_table(v), ablation_table(v), classes_table(v), unscored_table(v), provenance_table(v))
    return [table for table in found if table is not None]


def phase_of(case: Case) -> str:
    """``train``, or ``infer`` for everything that only runs forward."""
    return "train" if case.mode == "train" else "infer"


def _percent(value: float | None) -> Cell:
    return cell(None) if value is None else cell(units.percent(value), value)


def groups_table(v: Validation) -> Table | None:
    """Latency by group and phase, on the wall clock and in processor time; None without groups."""
    latency = [c for c in v.cases if c.quantity == "latency_s"]
    groups = list(dict.fromkeys((c.group, phase_of(c)) for c in latency if c.group))
    if not groups:
        return None
    rows = []
    for group, phase in groups:
        members = [c for c in latency if (c.group, phase_of(c)) == (group, phase)]
        rows += _group_rows((cell(group), cell(_PHASES[phase])), members)
    return Table(
        "Latency by part of the suite",
        (
            Column("part"), Column("phase"), Column("clock"), Column("scored", True), Column("MAPE", True),
            Column("median", True), Column("bias", True), Column("within 10 %", True), Column("worst", True),
            Column("Kendall τ", True), Column("in interval", True), Column("noise floor", True),
            Column("roofline MAPE", True),
        ),
        tuple(rows),
        note="Bias: the mean signed error. In interval: share of cases whose measured value lies in the predicted "
        "interval (and where that share lies with 95 % confidence, Clopper and Pearson). Kendall's τ counts pairs "
        "within a factor of two. At speed: where the reference spin beside each repeat takes what it took in "
        "the calibration. Noise floor: the mean |ln ratio| of two processes that measured the same. The "
        "roofline has one constant a phase, fitted on the other cases.",
    )  # fmt: skip


def _group_rows(names: tuple[Cell, ...], members: Sequence[Case]) -> list[tuple[Cell, ...]]:
    scored = [c for c in members if c.scored]
    if not scored:
        return [(*names, cell("wall"), cell(f"0 of {len(members)}", 0), *(cell(None),) * 9)]
    at_speed = all(c.wall is not None for c in scored)
    rows = [(*names, *_group_row("wall, at speed" if at_speed else "wall", scored, len(members)))]
    if at_speed:
        as_passed = [replace(c, measured=c.wall) for c in scored]
        rows.append((*names, *_group_row("wall, as passed", as_passed, len(members))))
    if all(c.processor is not None for c in scored):
        by_processor = [replace(c, measured=c.processor) for c in scored]
        rows.append((*names, *_group_row("processor", by_processor, len(members))))
    return rows


def _group_row(clock: str, scored: Sequence[Case], of: int) -> tuple[Cell, ...]:
    s = summarize(scored)
    low, high = s.interval_coverage_ci
    bias = sum(c.error for c in scored) / len(scored)
    return (
        cell(clock),
        cell(f"{s.n} of {of}", s.n),
        _percent(s.mape),
        _percent(s.median_ape),
        cell(signed_percent(bias), bias),
        _percent(s.within_10),
        _percent(s.worst),
        cell(None) if s.kendall_tau is None else cell(f"{s.kendall_tau:.2f}", s.kendall_tau),
        cell(f"{units.percent(s.interval_coverage)} ({100 * low:.0f} – {100 * high:.0f})", s.interval_coverage),
        _percent(s.noise_floor),
        _percent(s.baseline_mape),
    )


def ablation_table(v: Validation) -> Table | None:
    """Errors with each term taken out; None where none was."""
    if not v.ablation:
        return None
    rows = tuple(
        (
            cell(a.name),
            cell(_PHASES[a.phase]),
            cell(a.n, a.n),
            _percent(a.mape),
            _percent(a.median_ape),
            _percent(a.within_10),
            _percent(a.worst),
            _percent(a.free_mape),
        )
        for a in sorted(v.ablation, key=lambda a: a.phase)
    )
    columns = (
        Column("the model"), Column("phase"), Column("cases", True), Column("MAPE", True), Column("median", True),
        Column("within 10 %", True), Column("worst", True), Column("MAPE, one free factor", True),
    )  # fmt: skip
    return Table(
        "What each term buys",
        columns,
        rows,
        note="One free factor: the error after a factor fitted on the other cases of the phase, that is, without bias.",
    )


def classes_table(v: Validation, least: float = 0.002) -> Table | None:
    """Errors of single ops by algorithm class; classes below `least` of a phase's time are left out."""
    shown = [c for c in v.classes if c.share >= least]
    if not shown:
        return None
    rows = tuple(
        (
            cell(c.kind),
            cell(_PHASES[c.phase]),
            cell(units.count(c.ops), c.ops),
            _percent(c.share),
            cell(signed_percent(c.signed), c.signed),
            _percent(c.absolute),
        )
        for c in shown
    )
    columns = (
        Column("class"), Column("phase"), Column("ops", True), Column("share of time", True), Column("signed", True),
        Column("mean absolute", True),
    )  # fmt: skip
    left = len(v.classes) - len(shown)
    return Table(
        "Error by class of op",
        columns,
        rows,
        note="Ops timed inside real steps of the development half. Signed: predicted over measured seconds of all ops "
        "of the class. Mean absolute: of single ops, weighted by their time."
        + (f" Left out: {left} of less than {units.percent(least)} of the time." if left else ""),
    )


def unscored_table(v: Validation) -> Table | None:
    """Cases whose own measurement is too far spread to hold a prediction against; None where there are none."""
    cases = [c for c in v.cases if not c.scored]
    if not cases:
        return None
    rows = tuple(
        (
            cell(c.name.removesuffix(f" {c.quantity}")),
            cell(c.group),
            cell(form_of(c.quantity)(c.predicted), c.predicted),
            cell(form_of(c.quantity)(c.truth), c.truth),
            cell(signed_percent(c.error), abs(c.error)),
            _percent(c.spread),
        )
        for c in cases
    )
    columns = (
        Column("case"), Column("part"), Column("predicted", True), Column("measured", True), Column("error", True),
        Column("spread", True),
    )  # fmt: skip
    return Table(
        "Not scored: the measurement disagrees with itself",
        columns,
        rows,
        note="Spread: the median process over the calmest, less one; above 5 % a case is listed here and not scored.",
    )


def provenance_table(v: Validation) -> Table | None:
    """What the figures rest on."""
    if not v.provenance:
        return None
    rows = tuple((cell(what), cell(text)) for what, text in v.provenance.items())
    return Table("What these figures rest on", (Column("what"), Column("is")), rows)
