"""One self-contained page: pictures that answer the mouse, tables that sort, and where every number comes from.

Nothing is fetched: the plotting library lies inside, packed, and the page opens from disk, without a network, on a
phone, light or dark. Pictures need a browser of 2023 or later; the tables need none in particular.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import plotly

from .. import __version__, units
from ..device import Device, load_device
from ..errors import CostmodelError
from ..estimate import Estimate
from ..job import Job
from ..pareto import Front
from ..validate import Validation
from . import _of_comparison, _of_estimate, _of_front, _of_job, _of_sources, _of_study, _of_validation
from ._plotly import Figure
from ._plots_points import agreement_figure, front_figure
from ._plots_step import memory_figure, movement_figure, roofline_figure, waterfall_figure
from ._plots_study import study_figures
from ._table import Column, Table, cell

if TYPE_CHECKING:
    from . import Report

__all__ = ["devices_of", "render"]

SUFFIX = ".html"
_MOST_ROWS = 600  # of cases in one table; the picture has them all


@dataclass
class _Figures:
    """Figures of the page by number; the page draws each where it is mentioned, when it comes into view."""

    all: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure | None) -> int | None:
        if figure is None:
            return None
        self.all.append(figure)
        return len(self.all) - 1


def render(report: Report) -> str:
    """The page, as text."""
    figures = _Figures()
    context = {
        "title": report.title,
        "version": __version__,
        "summary": _summary(report),
        "fronts": _fronts(report.fronts, figures),
        "estimates": [_estimate(e, figures) for e in report.estimates],
        "jobs": [_job(job) for job in report.jobs],
        "comparison": None if report.comparison is None else _comparison(report, figures),
        "checks": None if not report.checks else _checks(report),
        "validation": None if report.validation is None else _validation(report.validation, figures),
        "devices": [_device(d) for d in devices_of(report)],
        "gaps": _gaps(report),
        "sources": _sources(report),
    }
    data = json.dumps(figures.all, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    page: str = _template().render(
        **context,
        heights=[f["layout"].get("height") for f in figures.all],
        css=_asset("page.css"),
        js=_asset("page.js"),
        figures=_packed(data.encode()) if figures.all else "",
        plotly=_packed_plotly() if figures.all else "",
    )
    return page


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_asset("page.html.j2"))


@cache
def _packed_plotly() -> str:
    """plotly.js: 2 MB instead of 4.8."""
    return _packed(files(plotly).joinpath("package_data", "plotly.min.js").read_bytes())


def _packed(data: bytes) -> str:
    """Gzipped, in base64: the page unpacks it. Nothing in it can end the element that holds it."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _summary(report: Report) -> list[str]:
    """The page in sentences: what a reader takes away who reads no further."""
    lines = list(
        {(f.points[0].family, f.device): _family_answer(f) for f in reversed(report.fronts) if f.points}.values()
    )
    lines = lines[::-1][:8]
    if report.checks:
        lines.append(_of_comparison.checks_answer(report.checks))
    if report.comparison is not None:
        lines.append(_of_comparison.comparison_answer(report.comparison))
    if report.validation is not None:
        lines.append(_of_validation.verdict(report.validation))
    lines += [_of_job.job_answer(job) for job in report.jobs[:2]]
    if len(report.estimates) == 1:
        lines.append(_of_estimate.answer(report.estimates[0]))
    return lines


def _family_answer(front: Front) -> str:
    return f"{front.points[0].family}: {_of_front.front_answer(front)}"


def _fronts(fronts: Sequence[Front], figures: _Figures) -> list[dict[str, Any]]:
    """Fronts by family and metric; each a choice of device and cost."""
    groups: dict[tuple[str, str], list[Front]] = {}
    for front in fronts:
        if front.points:
            groups.setdefault((front.points[0].family, front.points[0].metric), []).append(front)
    return [
        {
            "family": family,
            "metric": metric,
            "variants": [
                {
                    "label": f"{f.device}, {_of_validation.title_of(f.axis)}",
                    "answer": _of_front.front_answer(f),
                    "figure": figures.add(front_figure(f)),
                    "table": _of_front.front_table(f),
                    "choices": _of_front.choices_table(f),
                }
                for f in members
            ],
        }
        for (family, metric), members in groups.items()
    ]


def _estimate(e: Estimate, figures: _Figures) -> dict[str, Any]:
    return {
        "label": f"{_of_estimate.name_of(e)} on {e.device.name}, {e.runtime}"
        + (f", {e.threads} threads" if e.threads > 1 else ""),
        "answer": _of_estimate.answer(e),
        "facts": _of_estimate.headline(e),
        "caveat": _of_estimate.caveat(e),
        "interval": _of_estimate.interval_source(e),
        "files": _of_sources.sentence(_of_sources.behind_estimate(e)),
        "roofline": figures.add(roofline_figure(e)),
        "movement": figures.add(movement_figure(e)),
        "memory": figures.add(memory_figure(e)),
        "tables": [
            ("by op", _of_estimate.ops_table(e, None)),
            ("by module", _of_estimate.modules_table(e, 60, depth=3)),
            ("by phase", _of_estimate.phases_table(e)),
            ("single ops", _of_estimate.single_ops_table(e, 120)),
        ],
        "held": [_of_estimate.memory_table(e), _of_estimate.holders_table(e)],
        "gaps": _of_estimate.gaps_table(e),
        "hinges": _of_estimate.hinges_table(e),
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "label": f"{_of_job.job_name(job)} on {job.step.device.name}",
        "answer": _of_job.job_answer(job),
        "facts": _of_job.job_facts(job),
        "parts": _of_job.parts_table(job),
        "files": _of_sources.sentence(_of_sources.behind_job(job)),
        "gaps": _of_job.gaps_table(job),
    }


def _comparison(report: Report, figures: _Figures) -> dict[str, Any]:
    c = report.comparison
    assert c is not None
    return {
        "answer": _of_comparison.comparison_answer(c),
        "peak": _of_comparison.peak_move(c),
        "figure": figures.add(waterfall_figure(c)),
        "tables": [
            ("side by side", _of_comparison.sides_table(c)),
            ("by op", _of_comparison.changes_table(c.by_op, "op", None)),
            ("by module", _of_comparison.changes_table(c.by_module, "module", 60)),
            ("at the peak", _of_comparison.peak_table(c)),
        ],
    }


def _checks(report: Report) -> dict[str, Any]:
    return {"answer": _of_comparison.checks_answer(report.checks), "table": _of_comparison.checks_table(report.checks)}


def _validation(v: Validation, figures: _Figures) -> dict[str, Any]:
    tables = dict(zip(v.summary, _of_validation.cases_tables(v, _MOST_ROWS)))
    return {
        "answer": _of_validation.verdict(v),
        "summary": _of_validation.summary_table(v),
        "study": _of_study.study_tables(v),
        "pictures": [{"title": title, "figure": figures.add(figure)} for title, figure in study_figures(v)],
        "skipped": _of_validation.skipped_table(v, _MOST_ROWS),
        "variants": [
            {
                "label": _of_validation.title_of(q),
                "figure": figures.add(agreement_figure(v, q)) if _drawable(v, q) else None,
                "table": table,
            }
            for q, table in tables.items()
        ],
    }


def _drawable(v: Validation, quantity: str) -> bool:
    """A log-log picture needs values above zero."""
    return any(c.quantity == quantity and c.truth > 0 and c.predicted > 0 for c in v.cases)


def devices_of(report: Report) -> list[Device]:
    """Devices of the estimates, and those of the points and cases whose profile is found by name."""
    priced = [*report.estimates, *(job.step for job in report.jobs)]
    found = {e.device.name: e.device for e in priced}
    named = [f.device for f in report.fronts]
    named += [] if report.validation is None else [c.device for c in report.validation.cases]
    for name in dict.fromkeys(named):
        if name not in found:
            with suppress(CostmodelError):  # a device that somebody else measured on has no profile
                found[name] = load_device(name)
    return list(found.values())


def _device(device: Device) -> dict[str, Any]:
    kinds = [n.kind for _, n in device.numbers()]
    return {
        "name": device.name,
        "title": device.title,
        "notes": device.notes,
        "guesses": kinds.count("guess"),
        "numbers": len(kinds),
        "table": _of_estimate.device_table(device),
    }


def _gaps(report: Report) -> Table | None:
    """Every gap of every estimate, by name; what was not validated is listed with the validation."""
    rows = [
        (
            cell(op),
            cell(units.count(n), n),
            cell(units.percent(1.0 - e.coverage.time), 1.0 - e.coverage.time),
            cell(_of_estimate.name_of(e)),
        )
        for e in report.estimates
        for op, n in e.coverage.unpriced.items()
    ]
    if not rows:
        return None
    columns = (Column("op"), Column("ops", True), Column("all gaps' share of the time", True), Column("in"))
    return Table("Ops without a formula", columns, tuple(rows))


def _sources(report: Report) -> list[Table]:
    """Where estimates, points and runs come from."""
    tables = []
    if report.estimates:
        rows = []
        for e in report.estimates:
            meta = e.graph.meta
            rows.append(
                (
                    cell(_of_estimate.name_of(e)),
                    cell(meta.dtype),
                    cell(meta.optimizer),
                    cell(units.count(len(e.graph)), len(e.graph)),
                    cell(meta.producer),
                    cell(f"{e.device.name}, {e.runtime}, {e.threads} thread{'s' if e.threads > 1 else ''}"),
                )
            )
        columns = (
            Column("step"), Column("dtype"), Column("optimizer"), Column("ops", True), Column("traced by"),
            Column("priced for"),
        )  # fmt: skip
        tables.append(Table("What was priced", columns, tuple(rows)))
    points = _of_front.runs_table(report.fronts)
    if points is not None:
        tables.append(points)
    files = _of_sources.files_table(report)
    if files is not None:
        tables.append(files)
    return tables
