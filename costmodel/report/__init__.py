"""Reports: `render` draws estimates, validations, fronts, comparisons and budget checks in any format.

    cm.render(estimate)                                        # text for a terminal or a log
    cm.render([*estimates, validation, *fronts.values()], "html", "reports/")   # one self-contained page
    cm.render(front, "svg", "front.svg")                       # for a paper
    cm.render(estimate, "perfetto", "step.json")               # a timeline to open in ui.perfetto.dev

A format is a file of this folder (`text`, `html`, `png`, `svg`, `markdown`, `csv`, `latex`, `perfetto`, `github`) with
``SUFFIX`` and ``render(report)``; a new one is a new file, found by its name. Files that begin with an underscore are
what the formats share: tables (`_table`, `_of_…`) and the numbers behind pictures (`_series`).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..budget import Check
from ..compare import Comparison
from ..errors import CostmodelError, MissingExtra, UnknownName
from ..estimate import Estimate
from ..graph import write_atomic
from ..job import Job
from ..pareto import Front
from ..sources import Source
from ..validate import Validation

__all__ = ["Report", "formats", "render", "report_of", "repr_html"]


@dataclass(frozen=True, eq=False)
class Report:
    """What is shown together; any part may be missing.

    Attributes:
        estimates: each gets its figures, pictures and tables.
        validation: predicted against measured.
        fronts: one a family, device and cost axis.
        jobs: whole fine-tuning runs and requests.
        comparison: two estimates side by side.
        checks: budget limits tested.
        sources: more files that figures were read from, such as tables of runs; what estimates and points were read
            from they say themselves.
        title: of the page.
    """

    estimates: tuple[Estimate, ...] = ()
    validation: Validation | None = None
    fronts: tuple[Front, ...] = ()
    jobs: tuple[Job, ...] = ()
    comparison: Comparison | None = None
    checks: tuple[Check, ...] = ()
    sources: tuple[Source, ...] = ()
    title: str = "costmodel"

    def __add__(self, other: Report) -> Report:
        for one in ("validation", "comparison"):
            if getattr(self, one) is not None and getattr(other, one) is not None:
                raise CostmodelError(f"a report shows one {one}; render the second by itself")
        return replace(
            self,
            estimates=self.estimates + other.estimates,
            validation=self.validation or other.validation,
            fronts=self.fronts + other.fronts,
            jobs=self.jobs + other.jobs,
            comparison=self.comparison or other.comparison,
            checks=self.checks + other.checks,
            sources=tuple(dict.fromkeys(self.sources + other.sources)),
        )

    @property
    def name(self) -> str:
        """A file name for it, without its suffix."""
        if self.estimates:
            e = self.estimates[0]
            words: tuple[str | None, ...] = (e.graph.meta.model, e.graph.meta.method, e.graph.meta.mode, e.device.name)
        elif self.fronts:
            front = self.fronts[0]
            words = ("pareto", front.points[0].family if front.points else None, front.device, front.axis)
        elif self.jobs:
            meta = self.jobs[0].step.graph.meta
            words = ("job", meta.model, meta.method, self.jobs[0].step.device.name)
        else:
            parts = ("validation", "comparison", "checks")
            words = (next((p for p in parts if getattr(self, p)), "report"),)
        plain = (re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-") for word in words if word)
        return "-".join(filter(None, plain)) or "report"


def report_of(what: Any) -> Report:
    """Anything that can be shown as one `Report`: a part of it, a list or a dict of parts (nested as they come)."""
    if isinstance(what, Report):
        return what
    if isinstance(what, Estimate):
        return Report(estimates=(what,))
    if isinstance(what, Validation):
        return Report(validation=what)
    if isinstance(what, Front):
        return Report(fronts=(what,))
    if isinstance(what, Job):
        return Report(jobs=(what,))
    if isinstance(what, Comparison):
        return Report(comparison=what)
    if isinstance(what, Source):
        return Report(sources=(what,))
    if isinstance(what, Check):
        return Report(checks=(what,))
    if isinstance(what, Mapping):
        what = list(what.values())
    if isinstance(what, (list, tuple)):
        total = Report()
        for part in what:
            total += report_of(part)
        return total
    raise CostmodelError(
        f"a {type(what).__name__} cannot be rendered; give an Estimate, a Validation, a Front, a Comparison, a whole "
        "job, the rows of a budget check, or a list or dict of them"
    )


def formats() -> list[str]:
    """Names of the formats there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def render(
    report: Any, format: str = "text", path: str | os.PathLike[str] | None = None, *, title: str | None = None
) -> str | Path:
    """Draw a report.

    Args:
        report: an `Estimate`, `Validation`, `Front`, `Comparison`, rows of `budget.check`, a `Report`, or any list or
            dict of them (what `pareto` returns, for example).
        format: one of `formats`.
        path: file to write, whole or not at all; in a folder (or a path that ends with a slash) the name follows from
            the report, ``index.html`` for HTML. None returns the text.
        title: of an HTML page.

    Returns:
        The path of the file written, or the text where `path` is None.

    Raises:
        UnknownName: no such format. CostmodelError: this report cannot be drawn in this format, or a picture without
            a path. MissingExtra: a library is not installed; says the pip command.
    """
    if format not in formats():
        raise UnknownName("report format", format, formats())
    content = report_of(report)
    if title is not None:
        content = replace(content, title=title)
    try:
        module = importlib.import_module(f".{format}", __name__)
        drawn: str | bytes = module.render(content)
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name).split(".", 1)[0], "report") from error
    if path is None:
        if isinstance(drawn, bytes):
            raise CostmodelError(f"{format} is not text; give a path to write it to")
        return drawn
    target = Path(path)
    if target.is_dir() or os.fspath(path).endswith(("/", os.sep)):
        target /= "index.html" if format == "html" else f"{content.name}{module.SUFFIX}"
    return write_atomic(target, drawn.encode() if isinstance(drawn, str) else drawn)


def repr_html(what: Any) -> str:
    """A fragment of HTML for a notebook: an `OpGraph` or anything that `render` takes. No script, no network."""
    from ._notebook import fragment

    return fragment(what)
