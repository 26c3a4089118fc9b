"""Rows for other tools: CSV text, and the same rows as a pandas frame.

An estimate has one row an op, a validation one a case, fronts one a point and axis, a comparison one an op name, a
budget check one a limit. Values are in SI units, unrounded; columns say their unit.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from ..errors import CostmodelError, MissingExtra
from ..estimate import Estimate

if TYPE_CHECKING:
    import pandas

    from . import Report

__all__ = ["frame", "render", "rows"]

SUFFIX = ".csv"
Value = str | int | float | bool | None


def render(report: Report) -> str:
    """A heading line and the rows of the report, which must be of one kind."""
    found = rows(report)
    columns = list(dict.fromkeys(k for row in found for k in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def frame(what: Any) -> pandas.DataFrame:
    """The rows of an `Estimate`, `Validation`, `Front`… as a pandas frame, one row an op, case or point.

    >>> frame(estimate).groupby("module").latency_s.sum()  # doctest: +SKIP
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtra("pandas", "report") from error
    from . import report_of

    return pandas.DataFrame(rows(report_of(what)))


def rows(report: Report) -> list[dict[str, Value]]:
    """The rows of a report by column.

    Raises:
        CostmodelError: the report has parts of different kinds, or none.
    """
    kinds = {
        "estimates": [row for e in report.estimates for row in _ops(e)],
        "validation": [] if report.validation is None else report.validation.as_dict()["cases"],
        "fronts": _points(report),
        "comparison": _changes(report),
        "checks": _checks(report),
    }
    filled = [name for name, found in kinds.items() if found]
    if len(filled) != 1:
        raise CostmodelError(
            f"a CSV file has rows of one kind, this report has {' and '.join(filled) or 'none'}; render one part of it"
        )
    return kinds[filled[0]]


def _ops(e: Estimate) -> list[dict[str, Value]]:
    graph, meta = e.graph, e.graph.meta
    what: dict[str, Value] = {
        "model": meta.model, "mode": meta.mode, "method": meta.method, "batch": meta.batch, "dtype": meta.dtype,
        "device": e.device.name, "runtime": e.runtime, "threads": e.threads,
    }  # fmt: skip
    return [
        {
            **what,
            "position": k,
            "op": graph.op_name[k],
            "phase": graph.op_phase[k],
            "module": graph.op_module[k],
            "kind": e.lowered.costs[k].kind,
            "start_s": float(e.start[k]),
            "latency_s": float(e.seconds[k]),
            "flops": float(e.lowered.table.flops[k]),
            "bytes": float(e.lowered.op_bytes[k]),
            "bound": e.bound_of(k),
            "live_bytes": int(e.footprint.live[k + 1]),
        }
        for k in range(len(graph))
    ]


def _points(report: Report) -> list[dict[str, Value]]:
    found: list[dict[str, Value]] = []
    for front in report.fronts:
        for i, p in enumerate(front.points):
            cost = p.costs[front.axis]
            found.append(
                {
                    "family": p.family, "name": p.name, "model": p.model, "method": p.method, "mode": p.mode,
                    "batch": p.batch, "metric": p.metric, "accuracy": p.accuracy, "accuracy_error": p.accuracy_error,
                    "seeds": p.seeds, "device": p.device, "runtime": p.runtime, "axis": front.axis, "low": cost.low,
                    "point": cost.point, "high": cost.high, "measured": p.measured.get(front.axis),
                    "optimal": front.optimal[i], "sure": front.sure[i], "knee": front.knee == i,
                    "within_budget": front.within_budget == i, "provenance": p.provenance,
                }
            )  # fmt: skip
    return found


def _changes(report: Report) -> list[dict[str, Value]]:
    if report.comparison is None:
        return []
    return [
        {
            "op": c.key, "ops_a": c.count[0], "ops_b": c.count[1], "latency_a_s": c.latency_s[0],
            "latency_b_s": c.latency_s[1], "delta_s": c.delta_s, "flops_a": c.flops[0], "flops_b": c.flops[1],
            "bytes_a": c.bytes[0], "bytes_b": c.bytes[1],
        }
        for c in report.comparison.by_op
    ]  # fmt: skip


def _checks(report: Report) -> list[dict[str, Value]]:
    found: list[dict[str, Value]] = []
    for c in report.checks:
        low, point, high = (c.predicted.low, c.predicted.point, c.predicted.high) if c.predicted else (None, None, None)
        found.append(
            {
                "model": c.model, "device": c.device, "runtime": c.runtime, "mode": c.mode, "method": c.method,
                "batch": c.batch, "threads": c.threads, "limit_on": c.limit_name, "limit": c.limit, "low": low,
                "point": point, "high": high, "over": c.over, "verdict": c.verdict,
            }
        )  # fmt: skip
    return found
