"""Reports for a terminal, as `rich` renderables; nothing is printed here.

`estimate_table` is an estimate's whole first screen, `memory_table` its memory, `validation_table`, `front_table`,
`comparison_table` and `checks_table` what their names say. Additive columns add up to the printed total.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from ..budget import Check
from ..compare import Comparison
from ..estimate import Estimate
from ..job import Job
from ..pareto import Front
from ..validate import Validation
from . import _of_comparison, _of_estimate, _of_front, _of_job, _of_validation
from ._table import Table

if TYPE_CHECKING:
    from . import Report

__all__ = [
    "checks_table", "comparison_table", "estimate_table", "front_table", "job_table", "memory_table", "render",
    "validation_table",
]  # fmt: skip

SUFFIX = ".txt"
_STYLES = {
    "fits": "green", "within": "green", "probably fits": "yellow", "probably does not fit": "red",
    "does not fit": "bold red", "OVER": "red", "OVER, surely": "bold red", "unknown": "yellow", "guess": "yellow",
}  # fmt: skip

# A column of text is not squeezed below this.
_READABLE = 14


def render(report: Report) -> str:
    """All of a report as plain text, 110 columns wide, without colours."""
    console = Console(file=io.StringIO(), width=110, color_system=None, legacy_windows=False)
    console.print(Group(*(block for part in _parts(report) for block in (part, ""))))
    text = console.file
    assert isinstance(text, io.StringIO)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip() + "\n"


def _parts(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = [job_table(job) for job in report.jobs]
    parts += [estimate_table(e) for e in report.estimates]
    if report.comparison is not None:
        parts.append(comparison_table(report.comparison))
    if report.checks:
        parts.append(checks_table(report.checks))
    if report.validation is not None:
        parts.append(validation_table(report.validation))
    parts += [front_table(front) for front in report.fronts]
    return parts


def estimate_table(estimate: Estimate, top: int = 10) -> Group:
    """The first screen of an estimate: the answer, its figures, where time and memory go, gaps, and guesses.

    Args:
        estimate: what is shown.
        top: op names listed; the others are one row.
    """
    facts = _facts()
    for label, value in _of_estimate.headline(estimate):
        facts.add_row(label, Text(value, style=_STYLES.get(value.split(":")[0], "") if label == "fits" else ""))
    gaps = _of_estimate.gaps_table(estimate)
    return Group(
        Text(_of_estimate.answer(estimate), style="bold"),
        "",
        facts,
        "",
        Text(_of_estimate.caveat(estimate)),
        Text(f"Interval: {_of_estimate.interval_source(estimate)}.", style="dim"),
        "",
        drawn(_of_estimate.ops_table(estimate, top)),
        *([drawn(_of_estimate.phases_table(estimate))] if len(set(estimate.graph.op_phase)) > 1 else []),
        drawn(_of_estimate.memory_table(estimate)),
        *([drawn(gaps)] if gaps else []),
    )


def job_table(job: Job) -> Group:
    """A whole job: the answer, its figures, its parts, and what is not in them."""
    facts = _facts()
    for label, value in _of_job.job_facts(job):
        facts.add_row(label, Text(value))
    gaps = _of_job.gaps_table(job)
    return Group(
        Text(_of_job.job_answer(job), style="bold"),
        "",
        facts,
        "",
        drawn(_of_job.parts_table(job)),
        *([drawn(gaps)] if gaps else []),
    )


def _facts() -> RichTable:
    facts = RichTable.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    return facts


def memory_table(estimate: Estimate, top: int = 10) -> Group:
    """Memory of a step: bytes at the peak by role, and the `top` storages that hold them."""
    return Group(drawn(_of_estimate.memory_table(estimate)), drawn(_of_estimate.holders_table(estimate, top)))


def validation_table(validation: Validation, most: int = 40) -> Group:
    """Verdict, errors by quantity, cases (the `most` that are off most, where there are more), what was skipped."""
    skipped = _of_validation.skipped_table(validation, most)
    return Group(
        Text(_of_validation.verdict(validation), style="bold"),
        "",
        drawn(_of_validation.summary_table(validation)),
        *(drawn(t) for t in _of_validation.cases_tables(validation, most)),
        *([drawn(skipped)] if skipped else []),
    )


def front_table(fronts: Front | Mapping[str, Front]) -> Group:
    """A front, or one a device as `pareto` returns them: which point to take, then every point."""
    each = [fronts] if isinstance(fronts, Front) else list(fronts.values())
    return Group(
        *(
            block
            for front in each
            for block in (
                Text(_of_front.front_answer(front), style="bold"),
                "",
                drawn(_of_front.front_table(front)),
                *(drawn(table) for table in (_of_front.choices_table(front),) if table),
            )
        )
    )


def comparison_table(comparison: Comparison, top: int = 12) -> Group:
    """Two estimates: what changed in a sentence, side by side, by op, by module, and at the peak of memory."""
    return Group(
        Text(_of_comparison.comparison_answer(comparison), style="bold"),
        "",
        drawn(_of_comparison.sides_table(comparison)),
        drawn(_of_comparison.changes_table(comparison.by_op, "op", top)),
        drawn(_of_comparison.changes_table(comparison.by_module, "module", top)),
        drawn(_of_comparison.peak_table(comparison)),
    )


def checks_table(checks: Sequence[Check]) -> Group:
    """Budget limits: the verdict, then one row a limit."""
    return Group(
        Text(_of_comparison.checks_answer(checks), style="bold"), "", drawn(_of_comparison.checks_table(checks))
    )


def drawn(table: Table) -> RenderableType:
    """A table for the terminal: headings, rule, rows, rule, total; the note under it."""
    drawing = RichTable(
        box=box.SIMPLE,
        title=table.title,
        title_style="bold",
        title_justify="left",
        show_footer=table.total is not None,
        pad_edge=False,
        padding=(0, 1),
    )
    for i, column in enumerate(table.columns):
        drawing.add_column(
            column.title,
            footer=table.total[i].text if table.total and table.total[i].text != "–" else "",
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.numeric,
            min_width=_least_width(table, i),
        )
    for row in table.rows:
        drawing.add_row(*(Text(c.text, style=_STYLES.get(c.text, "")) for c in row))
    if not table.note:
        return drawing
    return Group(drawing, Padding(Text(table.note, style="dim"), (0, 0, 1, 1)))


def _least_width(table: Table, i: int) -> int:
    """Characters under which column `i` cannot be read; a narrow terminal cuts the last columns instead."""
    words = [len(word) for word in table.columns[i].title.split()]
    cells = [len(row[i].text) for row in table.rows]
    longest = max([*words, *cells], default=1)
    return longest if table.columns[i].numeric else min(_READABLE, longest)
