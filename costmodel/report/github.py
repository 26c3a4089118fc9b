"""Budget checks as annotations of GitHub Actions: a line a limit, shown at the entry of the budget file.

The same checks give the same text; limits that hold are notices, limits that do not are errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import units
from ..budget import Check
from ..errors import CostmodelError
from ._of_comparison import checks_answer, limit_form

if TYPE_CHECKING:
    from . import Report

__all__ = ["render"]

SUFFIX = ".txt"
_LEVEL = {"over": "error", "unknown": "warning", "within": "notice"}


def render(report: Report) -> str:
    """A workflow command a limit, then the verdict in plain words."""
    if not report.checks:
        raise CostmodelError("annotations are of budget checks; render the rows of costmodel.budget.check")
    # one line: a name with a line break in it would start a command of its own
    verdict = " ".join(checks_answer(report.checks).split())
    return "\n".join([*(_annotation(c) for c in report.checks), verdict]) + "\n"


def _annotation(c: Check) -> str:
    place = f"file={_property(c.file)}," if c.file else ""
    place += f"line={c.line}," if c.file and c.line else ""
    title = f"{c.limit_name.replace('_', ' ')} of {c.model} on {c.device}"
    return f"::{_LEVEL[c.verdict]} {place}title={_property(title)}::{_data(_message(c))}"


def _message(c: Check) -> str:
    form = limit_form(c)
    what = " ".join(filter(None, (c.model, c.method, c.mode, f"batch {c.batch}", f"{c.threads} threads")))
    if c.predicted is None or c.over is None:
        return f"{what}: {c.limit_name} cannot be tested, the profile of {c.device} has no sourced constants for it"
    state = f"over by {units.percent(c.over)}" if c.over > 0 else f"{units.percent(-c.over)} to spare"
    return (
        f"{what} on {c.device}, {c.runtime}: upper bound {form(c.predicted.high)} of {c.limit_name}, predicted "
        f"{form(c.predicted.point)}, limit {form(c.limit)}: {state}"
    )


def _data(text: str) -> str:
    """Escaped as the runner reads it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
