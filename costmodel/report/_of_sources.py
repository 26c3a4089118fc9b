"""Which files every figure of a report was read from."""

from __future__ import annotations

from ..estimate import Estimate
from ..job import Job, Request
from ..pareto import Point
from ..sources import Source, profile_sources, source_of
from . import Report
from ._table import Column, Table, cell

__all__ = ["behind_estimate", "behind_job", "behind_point", "files_of", "files_table", "sentence"]

_TRACE = "trace"
_DIGITS = 12  # of a digest that are printed; the JSON has them all


def behind_estimate(estimate: Estimate) -> tuple[Source, ...]:
    """The trace that was priced, if it lies in a file, and the profile that it was priced with."""
    trace = (source_of(estimate.graph.file, _TRACE),) if estimate.graph.file else ()
    return (*trace, *profile_sources(estimate.device.name))


def behind_job(job: Job) -> tuple[Source, ...]:
    """The files behind each of its steps."""
    steps = (job.step, *job.decodes) if isinstance(job, Request) else (job.step,)
    return tuple(dict.fromkeys(source for step in steps for source in behind_estimate(step)))


def behind_point(point: Point) -> tuple[Source, ...]:
    """The files that a point of a front names."""
    return point.sources


def files_of(report: Report) -> dict[str, Source]:
    """Every file behind the report, by name, each once."""
    compared = () if report.comparison is None else (report.comparison.a, report.comparison.b)
    found = [s for e in (*report.estimates, *compared) for s in behind_estimate(e)]
    found += [s for job in report.jobs for s in behind_job(job)]
    found += [s for front in report.fronts for point in front.points for s in behind_point(point)]
    if report.validation is not None:
        found += [s for name in dict.fromkeys(c.device for c in report.validation.cases) for s in profile_sources(name)]
    return {s.file: s for s in (*found, *report.sources)}


def sentence(sources: tuple[Source, ...]) -> str:
    """The files in a line, each with the start of its digest; a step that was traced just now lies in none."""
    here = () if any(s.what == _TRACE for s in sources) else ("a step traced for this report, in no file",)
    return ", ".join((*here, *(f"{s.file} ({s.what}, sha256 {s.sha256[:_DIGITS]})" for s in sources)))


def files_table(report: Report) -> Table | None:
    """What was read, with digests; None where nothing was."""
    files = files_of(report)
    if not files:
        return None
    rows = tuple((cell(s.file), cell(s.what), cell(s.sha256[:_DIGITS])) for s in sorted(files.values(), key=_by_name))
    return Table(
        "Files that the figures were read from",
        (Column("file"), Column("what"), Column("sha256")),
        rows,
        note="index.json beside this page names the files behind each figure, with whole digests.",
    )


def _by_name(source: Source) -> str:
    return source.file
