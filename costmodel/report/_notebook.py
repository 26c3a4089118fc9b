"""Fragments of HTML for notebooks: no script, no network, both themes."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

from .. import units
from ..graph import OpGraph
from . import Report, _of_comparison, _of_estimate, _of_front, _of_job, _of_validation, report_of
from ._plotly import ROLE_COLOURS
from ._table import Cell, Column, Table, cell, column_in, rows_of, share_column

__all__ = ["fragment"]

# The series of the page on a light ground; a notebook's own theme decides the rest.
_SERIES = {
    "c0": "#1f6fc5", "c1": "#d9690f", "c2": "#17935f", "c3": "#8a57c6", "c4": "#c23b6e", "c5": "#5f7d0c",
    "c6": "#0e8fa5", "c7": "#8a6a4f",
}  # fmt: skip


def fragment(what: Any) -> str:
    """HTML of an `OpGraph` or of anything that `render` takes."""
    body = _graph(what) if isinstance(what, OpGraph) else _report(report_of(what))
    return f'<div class="costmodel" style="max-width:62em;line-height:1.45">{body}</div>'


def _report(report: Report) -> str:
    parts = []
    for e in report.estimates:
        facts = "".join(
            f'<tr><td style="text-align:left;opacity:.7">{escape(k)}</td>'
            f'<td style="text-align:left">{escape(v)}</td></tr>'
            for k, v in _of_estimate.headline(e)
        )
        gaps = _of_estimate.gaps_table(e)
        parts += [
            _bold(_of_estimate.answer(e)),
            f"<table>{facts}</table>",
            _bar(e.footprint.at_peak),
            _details(_of_estimate.ops_table(e, 12), opened=True),
            _details(_of_estimate.memory_table(e)),
            _details(_of_estimate.hinges_table(e)),
            _details(gaps, opened=True) if gaps else "",
        ]
    for job in report.jobs:
        missing = _of_job.gaps_table(job)
        parts += [
            _bold(_of_job.job_answer(job)),
            _details(_of_job.parts_table(job), opened=True),
            _details(missing, opened=True) if missing else "",
        ]
    if report.comparison is not None:
        c = report.comparison
        parts += [
            _bold(_of_comparison.comparison_answer(c)),
            _details(_of_comparison.sides_table(c), opened=True),
            _details(_of_comparison.changes_table(c.by_op), opened=True),
            _details(_of_comparison.peak_table(c)),
        ]
    if report.checks:
        parts += [
            _bold(_of_comparison.checks_answer(report.checks)),
            _details(_of_comparison.checks_table(report.checks), opened=True),
        ]
    if report.validation is not None:
        v = report.validation
        skipped = _of_validation.skipped_table(v, 40)
        parts += [
            _bold(_of_validation.verdict(v)),
            _details(_of_validation.summary_table(v), opened=True),
            *(_details(t) for t in _of_validation.cases_tables(v, 40)),
            _details(skipped) if skipped else "",
        ]
    for front in report.fronts:
        parts += [_bold(_of_front.front_answer(front)), _details(_of_front.front_table(front), opened=True)]
    return "".join(parts)


def _graph(graph: OpGraph) -> str:
    """A graph: what was traced, ops by name, and storages by role."""
    meta = graph.meta
    names = Counter(graph.op_name).most_common()
    top = names[:15]
    labels = [cell(n.removeprefix("aten::")) for n, _ in top]
    counts = [float(c) for _, c in top]
    if names[15:]:
        labels.append(cell(f"{len(names) - 15} more"))
        counts.append(float(sum(c for _, c in names[15:])))
    column, cells, total = column_in("count", "ops", counts)
    shares, share_cells, share_total = share_column(counts)
    ops = Table(
        "Ops", (Column("op"), column, shares), rows_of(labels, cells, share_cells), (cell("total"), total, share_total)
    )
    held: dict[str, int] = {}
    for role, size in zip(graph.storage_role, graph.storage_bytes):
        held[role] = held.get(role, 0) + size
    column, cells, total = column_in("bytes", "bytes", [float(b) for b in held.values()])
    roles = [cell(r.replace("_", " ")) for r in held]
    storages = Table(
        "Storages, over the whole step", (Column("role"), column), rows_of(roles, cells), (cell("total"), total)
    )
    phases = Counter(graph.op_phase)
    details = ", ".join(
        filter(None, (meta.method, meta.mode, f"batch {meta.batch}", meta.dtype, meta.optimizer, meta.producer))
    )
    title = (
        f"{meta.model or 'model'} ({details}): {units.count(len(graph))} ops "
        f"({', '.join(f'{units.count(n)} {p}' for p, n in phases.items())}), "
        f"{units.count(len(graph.tensor_storage))} tensors, {units.count(len(graph.storage_bytes))} storages"
    )
    return _bold(title) + _details(ops, opened=True) + _details(storages, opened=True)


def _bold(text: str) -> str:
    return f"<p><b>{escape(text)}</b></p>"


def _bar(at_peak: dict[str, int]) -> str:
    """The peak of memory as one bar, by role."""
    total = sum(at_peak.values())
    if not total:
        return ""
    pieces, names = [], []
    for role, held in at_peak.items():
        if not held:
            continue
        colour = _SERIES[ROLE_COLOURS[role]]
        name = f"{role.replace('_', ' ')} {units.size(held)}"
        pieces.append(
            f'<span title="{escape(name)}" style="width:{100 * held / total:.2f}%;background:{colour}"></span>'
        )
        names.append(f'<span style="white-space:nowrap"><span style="color:{colour}">■</span> {escape(name)}</span>')
    return (
        f"<div>Live bytes at the peak, {units.size(total)}:</div>"
        f'<div style="display:flex;height:14px;border-radius:4px;overflow:hidden">{"".join(pieces)}</div>'
        f'<div style="font-size:90%">{" ".join(names)}</div>'
    )


def _details(table: Table, opened: bool = False) -> str:
    heads = "".join(
        f'<th style="padding:2px 8px;text-align:{"right" if c.numeric else "left"}">{escape(c.title)}</th>'
        for c in table.columns
    )
    body = "".join(f"<tr>{_cells(row, table)}</tr>" for row in table.rows)
    foot = f"<tfoot><tr>{_cells(table.total, table, bold=True)}</tr></tfoot>" if table.total else ""
    note = f'<div style="opacity:.7;font-size:90%">{escape(table.note)}</div>' if table.note else ""
    return (
        f"<details{' open' if opened else ''}><summary>{escape(table.title)}</summary>"
        f'<div style="overflow-x:auto"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>{foot}</table></div>'
        f"{note}</details>"
    )


def _cells(row: tuple[Cell, ...], table: Table, bold: bool = False) -> str:
    weight = ";font-weight:600" if bold else ""
    return "".join(
        f'<td style="padding:2px 8px;text-align:{"right" if c.numeric else "left"}{weight}">{escape(v.text)}</td>'
        for c, v in zip(table.columns, row)
    )
