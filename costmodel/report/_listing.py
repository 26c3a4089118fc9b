"""A report as a flat list of sentences and tables, for the formats that only write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _of_comparison, _of_estimate, _of_front, _of_job, _of_study, _of_validation
from ._table import Cell, Column, Table, cell

if TYPE_CHECKING:
    from . import Report

__all__ = ["Block", "listing"]

Block = tuple[str, str, tuple[Table, ...]]


def listing(report: Report) -> list[Block]:
    """Blocks of (heading, sentence, tables), in the order in which a report is read."""
    blocks: list[Block] = []
    for front in report.fronts:
        table = _of_front.front_table(front)
        choices = _of_front.choices_table(front)
        blocks.append((table.title, _of_front.front_answer(front), (table, *([choices] if choices else []))))
    if report.checks:
        blocks.append(
            ("Budget", _of_comparison.checks_answer(report.checks), (_of_comparison.checks_table(report.checks),))
        )
    if report.comparison is not None:
        c = report.comparison
        blocks.append(
            (
                "Comparison",
                f"{_of_comparison.comparison_answer(c)} {_of_comparison.peak_move(c)}",
                (
                    _of_comparison.sides_table(c),
                    _of_comparison.changes_table(c.by_op),
                    _of_comparison.peak_table(c),
                ),
            )
        )
    for job in report.jobs:
        gaps = _of_job.gaps_table(job)
        tables = (_of_job.parts_table(job), *((gaps,) if gaps else ()))
        blocks.append((_of_job.job_name(job), _of_job.job_answer(job), tables))
    for e in report.estimates:
        gaps = _of_estimate.gaps_table(e)
        facts: tuple[tuple[Cell, ...], ...] = tuple((cell(k), cell(v)) for k, v in _of_estimate.headline(e))
        blocks.append(
            (
                f"{_of_estimate.name_of(e)} on {e.device.name}",
                f"{_of_estimate.answer(e)} {_of_estimate.caveat(e)}",
                (
                    Table("Figures", (Column("figure"), Column("predicted")), facts),
                    _of_estimate.ops_table(e),
                    _of_estimate.memory_table(e),
                    *((gaps,) if gaps else ()),
                ),
            )
        )
    if report.validation is not None:
        v = report.validation
        skipped = _of_validation.skipped_table(v, 40)
        tables = (
            _of_validation.summary_table(v),
            *_of_study.study_tables(v),
            *_of_validation.cases_tables(v, 40),
            *((skipped,) if skipped else ()),
        )
        blocks.append(("Predicted against measured", _of_validation.verdict(v), tables))
    return blocks
