"""The report as one object, for programs and for whoever checks it: every figure beside the files it was read from.

``files`` has each file with the SHA-256 of what was read; whatever holds a figure holds (or lies under) ``sources``,
names of those files. Figures of a device lie under ``devices``, each with the key of its source there.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..device import Device
from ..pareto import Front, Point
from ..sources import Source, profile_sources
from ._of_sources import behind_estimate, behind_job, behind_point, files_of

if TYPE_CHECKING:
    from . import Report

__all__ = ["document", "render"]

SUFFIX = ".json"
SCHEMA = 1


def render(report: Report) -> str:
    """JSON, a line."""
    return json.dumps(document(report), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def document(report: Report) -> dict[str, Any]:
    """The object."""
    files = files_of(report)
    return {
        "schema": SCHEMA,
        "kind": "costmodel-report",
        "title": report.title,
        "version": __version__,
        "files": {s.file: {"sha256": s.sha256, "what": s.what} for s in files.values()},
        "devices": {device.name: _device(device) for device in _devices(report)},
        "estimates": [{**e.as_dict(), "sources": _names(behind_estimate(e))} for e in report.estimates],
        "jobs": [{**_job(job), "sources": _names(behind_job(job))} for job in report.jobs],
        "fronts": [_front(front) for front in report.fronts],
        "comparison": None if report.comparison is None else _comparison(report),
        "validation": None if report.validation is None else _validation(report),
        "checks": [{**_check(c), "sources": [c.file] if c.file else []} for c in report.checks],
    }


def _names(sources: tuple[Source, ...]) -> list[str]:
    return [s.file for s in sources]


def _devices(report: Report) -> list[Device]:
    from .html import devices_of

    return devices_of(report)


def _device(device: Device) -> dict[str, Any]:
    return {
        "title": device.title,
        "sources": _names(profile_sources(device.name)),
        "texts": dict(device.sources),
        "numbers": [
            {"place": place, "value": n.value, "kind": n.kind, "source": n.source} for place, n in device.numbers()
        ],
    }


def _job(job: Any) -> dict[str, Any]:
    whole: dict[str, Any] = job.as_dict()
    return {k: v for k, v in whole.items() if k not in ("by_op", "prefill", "decode")}


def _front(front: Front) -> dict[str, Any]:
    return {
        "family": front.points[0].family if front.points else None,
        "device": front.device,
        "axis": front.axis,
        "knee": None if front.knee is None else front.points[front.knee].name,
        "hypervolume": front.hypervolume,
        "budget": dict(front.budget),
        "best_within_budget": None if front.within_budget is None else front.points[front.within_budget].name,
        "choices": [{"from": limit, "take": front.points[i].name} for limit, i in front.choices],
        "points": [
            {**_point(p), "optimal": front.optimal[i], "sure": front.sure[i]} for i, p in enumerate(front.points)
        ],
        "sources": list(dict.fromkeys(s.file for p in front.points for s in behind_point(p))),
    }


def _point(p: Point) -> dict[str, Any]:
    return {
        "name": p.name,
        "model": p.model,
        "method": p.method,
        "mode": p.mode,
        "batch": p.batch,
        "threads": p.threads,
        "metric": p.metric,
        "accuracy": p.accuracy,
        "accuracy_error": p.accuracy_error if math.isfinite(p.accuracy_error) else None,
        "seeds": p.seeds,
        "higher_is_better": p.higher_is_better,
        "device": p.device,
        "runtime": p.runtime,
        "costs": {axis: cost.as_dict() for axis, cost in p.costs.items()},
        "measured": dict(p.measured),
        "provenance": p.provenance,
        "sources": _names(behind_point(p)),
    }


def _comparison(report: Report) -> dict[str, Any]:
    c = report.comparison
    assert c is not None
    sources = dict.fromkeys((*behind_estimate(c.a), *behind_estimate(c.b)))
    return {**c.as_dict(), "sources": [s.file for s in sources]}


def _validation(report: Report) -> dict[str, Any]:
    v = report.validation
    assert v is not None
    profiles = [s.file for name in dict.fromkeys(c.device for c in v.cases) for s in profile_sources(name)]
    return {**v.as_dict(), "sources": [*dict.fromkeys(profiles), *(s.file for s in report.sources)]}


def _check(check: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(check)
