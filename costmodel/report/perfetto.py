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
from ..core.table import F8
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


def _slices(pid: int, e: Estimate) -> list[Event]:
    """Slices that nest: a phase, the parts of the module path, the op; neighbours in one module share its slice.

    An outer slice stands before the inner ones: of two slices of the same times, readers take the first as the outer.
    Ops that take no time (views, on a GPU) are instants: a slice without length is inside whatever touches it.
    """
    graph = e.graph
    start, end = _on_grid(e.start), _on_grid(e.end)
    slices: list[Event] = []
    open_: list[tuple[str, int, Event]] = []  # name, first op and slice of each level around the present op
    for k in range(len(graph) + 1):
        path = (graph.op_phase[k], *_modules(graph.op_module[k])) if k < len(graph) else ()
        same = 0
        while same < min(len(path), len(open_)) and open_[same][0] == path[same]:
            same += 1
        while len(open_) > same:
            _, first, outer = open_.pop()
            outer |= {"dur": end[k - 1] - start[first], "args": {"ops": k - first}}
        if k == len(graph):
            break
        for name in path[same:]:
            slices.append(_slice(pid, name, "module" if open_ else "phase", start[k]))
            open_.append((name, k, slices[-1]))
        op = _slice(pid, graph.op_name[k], e.lowered.costs[k].kind, start[k]) | {"args": _details(e, k)}
        slices.append(op | ({"dur": end[k] - start[k]} if end[k] > start[k] else {"ph": "i", "s": "t"}))
    return [s for s in slices if s["ph"] == "i" or s["dur"] > 0]


def _modules(path: str) -> list[str]:
    """The modules around an op, the outermost first, each by its whole path: "1" alone says nothing."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _on_grid(seconds: F8) -> list[float]:
    """Microseconds in steps of 1/64 (16 ns): binary fractions, so that a reader's ``ts + dur`` is exactly the ``ts``
    of the next slice; with decimals neighbours overlap by a rounding error, and nesting falls apart."""
    return [float(t) for t in np.rint(seconds * 64e6) / 64.0]


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


def _slice(pid: int, name: str, category: str, start_us: float) -> Event:
    return {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": _THREAD, "ts": start_us}


def _counters(pid: int, e: Estimate) -> Iterator[Event]:
    """Live bytes where they change: the total, and each role that holds any."""
    line = timeline(e, steps=1 << 62)
    stamps = _on_grid(line.time_s)
    for name, curve in (
        ("live bytes", line.live),
        *((f"live: {r.replace('_', ' ')}", c) for r, c in line.held.items()),
    ):
        changes = np.flatnonzero(np.diff(curve, prepend=-1))
        for i in changes:
            yield {
                "ph": "C", "name": name, "pid": pid, "tid": 0, "ts": stamps[i],
                "args": {"bytes": int(curve[i])},
            }  # fmt: skip
