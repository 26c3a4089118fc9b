"""The predicted step as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing.

One process, the step; one thread with the phases, the modules inside them and the ops inside those, at their predicted
times; counters of live bytes, in all and by role. Times are in microseconds, as the format wants them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import CostmodelError
from ..estimate import Estimate
from ._of_estimate import answer, name_of
from ._series import timeline

if TYPE_CHECKING:
    from . import Report

__all__ = ["render"]

SUFFIX = ".trace.json"
_THREAD = 1
Event = dict[str, Any]


def render(report: Report) -> str:
    """JSON of the trace; several estimates are processes one below the other, all from time zero."""
    if not report.estimates:
        raise CostmodelError("a trace shows estimates; this report has none")
    events: list[Event] = []
    for pid, estimate in enumerate(report.estimates, 1):
        events += _named(pid, estimate)
        events += _slices(pid, estimate)
        events += _counters(pid, estimate)
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "producer": f"costmodel {__version__}",
            "predicted": [answer(e) for e in report.estimates],
        },
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _named(pid: int, e: Estimate) -> list[Event]:
    return [
        {
            "ph": "M",
            "name": "process_name",
            "pid": pid,
            "tid": 0,
            "args": {"name": f"{name_of(e)} on {e.device.title}"},
        },
        {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}},
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": _THREAD, "args": {"name": f"predicted, {e.runtime}"}},
    ]


def _slices(pid: int, e: Estimate) -> Iterator[Event]:
    """Slices that nest: a phase, the parts of the module path, the op; neighbours in one module share its slice.

    Ends are the ends of the last op inside, in whole nanoseconds, so that no slice reaches out of the one around it.
    """
    graph = e.graph
    start = np.rint(e.start * 1e9).astype(np.int64)
    end = np.maximum(np.rint(e.end * 1e9).astype(np.int64), start)
    paths = [(phase, *filter(None, m.split("."))) for phase, m in zip(graph.op_phase, graph.op_module)]
    open_: list[tuple[str, int]] = []  # name and first op of each slice around the present op
    for k in range(len(graph) + 1):
        path = paths[k] if k < len(graph) else ()
        same = 0
        while same < min(len(path), len(open_)) and open_[same][0] == path[same]:
            same += 1
        while len(open_) > same:
            name, first = open_.pop()
            category = "module" if open_ else "phase"
            yield _slice(pid, name, category, int(start[first]), int(end[k - 1]), {"ops": k - first})
        if k == len(graph):
            return
        open_ += [(name, k) for name in path[same:]]
        yield _slice(pid, graph.op_name[k], e.lowered.costs[k].kind, int(start[k]), int(end[k]), _details(e, k))


def _details(e: Estimate, k: int) -> Event:
    graph = e.graph
    return {
        "op": k,
        "module": graph.op_module[k],
        "flops": float(e.lowered.table.flops[k]),
        "bytes": float(e.lowered.op_bytes[k]),
        "bound": e.bound_of(k),
        "inputs": " ".join(_shape(e, t) for t in graph.op_inputs[k]),
        "outputs": " ".join(_shape(e, t) for t in graph.op_outputs[k]),
    }


def _shape(e: Estimate, tensor: int) -> str:
    return f"{e.graph.tensor_dtype[tensor]}[{','.join(map(str, e.graph.tensor_shape[tensor]))}]"


def _slice(pid: int, name: str, category: str, start_ns: int, end_ns: int, args: Event) -> Event:
    return {
        "ph": "X", "name": name, "cat": category, "pid": pid, "tid": _THREAD, "ts": start_ns / 1e3,
        "dur": (end_ns - start_ns) / 1e3, "args": args,
    }  # fmt: skip


def _counters(pid: int, e: Estimate) -> Iterator[Event]:
    """Live bytes where they change: the total, and each role that holds any."""
    line = timeline(e, steps=1 << 62)
    stamps = np.rint(line.time_s * 1e9).astype(np.int64)
    for name, curve in (
        ("live bytes", line.live),
        *((f"live: {r.replace('_', ' ')}", c) for r, c in line.held.items()),
    ):
        changes = np.flatnonzero(np.diff(curve, prepend=-1))
        for i in changes:
            yield {
                "ph": "C", "name": name, "pid": pid, "tid": 0, "ts": int(stamps[i]) / 1e3,
                "args": {"bytes": int(curve[i])},
            }  # fmt: skip
