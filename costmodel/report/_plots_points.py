"""Interactive pictures of many points: predicted against measured, and fronts of accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .. import units
from ..estimate import Range
from ..pareto import Front, Point
from ..validate import Case, Validation
from ._of_estimate import ranged
from ._of_front import accuracy, standing
from ._of_validation import form_of, signed_percent, title_of
from ._plotly import (
    HOVER,
    Figure,
    axis_title,
    axis_unit,
    error_bar,
    hover_text,
    label,
    log_ticks,
    paint,
    ruled,
    short,
    shorts,
)

__all__ = ["agreement_figure", "base_method", "front_figure", "methods_of", "short_metric"]


def agreement_figure(validation: Validation, quantity: str) -> Figure:
    """Predicted over measured, with intervals and measurement noise; the roofline beside it, hollow."""
    cases = [c for c in validation.cases if c.quantity == quantity and c.truth > 0 and c.predicted > 0]
    values = [v for c in cases for v in (c.truth, c.predicted)]
    factor, unit = axis_unit(quantity, max(values, default=1.0))
    low, high = min(values, default=1.0) / factor / 1.6, max(values, default=1.0) / factor * 1.6
    published = all(c.measured is None for c in cases) and bool(cases)
    truth = "published" if published else "measured"
    data = [
        ruled([low, high], [low, high], "exact", paint("muted")),
        ruled([low, high], [low * 1.1, high * 1.1], "+10 %", paint("muted"), dash="dot", width=1),
        ruled([low, high], [low * 0.9, high * 0.9], "-10 %", paint("muted"), dash="dot", width=1),
    ]
    with_baseline = [c for c in cases if c.baseline]
    if with_baseline:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "one-constant roofline",
                "x": shorts(c.truth / factor for c in with_baseline),
                "y": shorts((c.baseline or 0.0) / factor for c in with_baseline),
                "text": [
                    hover_text(
                        c.name,
                        f"roofline {form_of(quantity)(c.baseline or 0.0)}",
                        f"{truth} {form_of(quantity)(c.truth)}",
                    )
                    for c in with_baseline
                ],
                "hovertemplate": HOVER,
                "marker": {"symbol": "square-open", "size": 8, "color": paint("muted")},
            }
        )
    for i, (group, mode) in enumerate(dict.fromkeys((c.group, c.mode) for c in cases)):
        members = [c for c in cases if (c.group, c.mode) == (group, mode)]
        name = f"{group}, {mode}" if group else mode
        data.append(_agreement_trace(members, quantity, factor, name, f"c{i % 8}", truth))
    axis = {**log_ticks(low, high), "range": [short(math.log10(low)), short(math.log10(high))]}
    return {
        "data": data,
        "layout": {
            "xaxis": {**axis, "title": {"text": f"{truth} {axis_title(quantity, unit)}"}},
            "yaxis": {**axis, "title": {"text": f"predicted {axis_title(quantity, unit)}"}},
            "hovermode": "closest",
        },
    }  # fmt: skip


def _agreement_trace(cases: Sequence[Case], quantity: str, factor: float, name: str, colour: str, truth: str) -> Figure:
    form = form_of(quantity)
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": f"predicted, {name}",
        "x": shorts(c.truth / factor for c in cases),
        "y": shorts(c.predicted / factor for c in cases),
        "error_y": error_bar([Range(c.low, c.predicted, c.high) for c in cases], factor, colour),
        "text": [
            hover_text(
                c.name,
                f"{c.device}, {c.runtime}",
                f"predicted {form(c.predicted)} ({form(c.low)} – {form(c.high)})",
                f"{truth} {form(c.truth)}" + (f", noise {units.percent(c.noise)}" if c.noise is not None else ""),
                f"error {signed_percent(c.error)}",
                c.note,
            )
            for c in cases
        ],
        "hovertemplate": HOVER,
        "marker": {"size": 9, "color": paint(colour), "line": {"color": paint("bg"), "width": 1}},
    }
    if any(c.noise for c in cases):
        trace["error_x"] = {
            "type": "data", "array": shorts((c.noise or 0.0) * c.truth / factor for c in cases), "thickness": 1,
            "width": 2, "color": paint(colour, 0.5),
        }  # fmt: skip
    return trace


# Fronts


def short_metric(metric: str) -> str:
    """What an axis has room for: ``bits/byte`` of ``bits/byte, byte by byte, on …``, ``accuracy`` of ``accuracy on …``.

    >>> short_metric("bits/byte, byte by byte, on 64 windows"), short_metric("accuracy on 1,000 test images")
    ('bits/byte', 'accuracy')
    """
    return metric.split(",")[0].split(" on ")[0]


def base_method(method: str) -> str:
    """``lbp_wht:order=4`` to ``lbp_wht``: what shares a colour."""
    return (method or "unmodified").split(":", 1)[0]


def front_figure(front: Front) -> Figure:
    """Points by cost and accuracy, predicted and measured, with error bars; the front, its knee and the budget."""
    axis, points = front.axis, front.points
    largest = max((p.costs[axis].point for p in points), default=1.0)
    factor, unit = axis_unit(axis, largest)
    metric = points[0].metric if points else "accuracy"
    up = points[0].higher_is_better if points else True
    optimal = [p for p, o in zip(points, front.optimal) if o]
    data: list[Figure] = [
        ruled(
            [p.costs[axis].point / factor for p in optimal], [p.accuracy for p in optimal], "front",
            paint("fg", 0.45), line={"shape": "hv", "color": paint("fg", 0.45), "width": 1.5},
        )
    ]  # fmt: skip
    data += _measured_traces(front, factor)
    for i, method in enumerate(methods_of(front)):
        own = [k for k, p in enumerate(points) if base_method(p.method) == method]
        data += [_legend_entry(method, f"c{i % 8}"), _front_trace(front, own, factor, method, f"c{i % 8}")]
    if front.within_budget is not None:
        best = points[front.within_budget]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "best within budget", "hoverinfo": "skip",
                "x": [short(best.costs[axis].point / factor)], "y": [short(best.accuracy)],
                "marker": {
                    "symbol": "star", "size": 20, "color": paint("good"), "line": {"color": paint("bg"), "width": 1},
                },
            }
        )  # fmt: skip
    shapes, annotations = _marks(front, factor)
    return {
        "data": data,
        "layout": {
            "xaxis": {**_cost_ticks(front, factor), "title": {"text": f"predicted {axis_title(axis, unit)}"}},
            "yaxis": {"title": {"text": f"{short_metric(metric)} ({'higher' if up else 'lower'} is better)"}},
            "shapes": shapes,
            "annotations": annotations,
            "hovermode": "closest",
        },
    }  # fmt: skip


def _cost_ticks(front: Front, factor: float) -> Figure:
    costs = [v / factor for p in front.points for v in (p.costs[front.axis].low, p.costs[front.axis].high) if v > 0]
    return log_ticks(min(costs), max(costs)) if costs else {"type": "log"}


def methods_of(front: Front) -> list[str]:
    """Methods of a front by name: in one order whatever the device, so that a method keeps its colour."""
    return sorted({base_method(p.method) for p in front.points})


def _legend_entry(method: str, colour: str) -> Figure:
    """A disc in the colour of a method: a legend would take the symbol of its first point, perhaps a beaten one."""
    return {
        "type": "scatter", "mode": "markers", "name": escape(method), "x": [None], "y": [None], "legendgroup": method,
        "marker": {"symbol": "circle", "size": 10, "color": paint(colour)},
    }  # fmt: skip


def _front_trace(front: Front, own: Sequence[int], factor: float, method: str, colour: str) -> Figure:
    points = [front.points[k] for k in own]
    sure, optimal = [front.sure[k] for k in own], [front.optimal[k] for k in own]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(method),
        "legendgroup": method,
        "showlegend": False,
        "x": shorts(p.costs[front.axis].point / factor for p in points),
        "y": shorts(p.accuracy for p in points),
        "error_x": error_bar([p.costs[front.axis] for p in points], factor, colour),
        "error_y": {
            "type": "data", "array": [short(_finite(p.accuracy_error)) for p in points], "thickness": 1.5, "width": 3,
            "color": paint(colour, 0.8),
        },
        "text": [_point_text(front, k) for k in own],
        "hovertemplate": HOVER,
        "marker": {
            "symbol": ["circle" if s else "circle-open" if o else "x-thin" for s, o in zip(sure, optimal)],
            "size": [12 if o else 8 for o in optimal],
            "color": paint(colour),
            "line": {"width": [1 if s else 2 for s in sure], "color": paint(colour)},
        },
    }  # fmt: skip


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _point_text(front: Front, k: int) -> str:
    p = front.points[k]
    form = form_of(front.axis)
    measured = p.measured.get(front.axis)
    others = [f"{title_of(a)} {ranged(r, form_of(a))}" for a, r in p.costs.items() if a != front.axis]
    return hover_text(
        f"{p.name} · {standing(front, k)}",
        f"{p.model} {p.method}".strip(),
        f"{p.metric} {accuracy(p)} over {p.seeds} seed{'s' if p.seeds != 1 else ''}",
        f"{title_of(front.axis)} {ranged(p.costs[front.axis], form)}",
        "" if measured is None else f"measured {form(measured)}",
        *others,
        p.provenance,
    )


def _measured_traces(front: Front, factor: float) -> list[Figure]:
    """What was measured, as diamonds, each tied to its prediction."""
    axis = front.axis
    both = [p for p in front.points if axis in p.measured]
    if not both:
        return []
    x: list[float | None] = []
    y: list[float | None] = []
    for p in both:
        x += [short(p.costs[axis].point / factor), short(p.measured[axis] / factor), None]
        y += [short(p.accuracy), short(p.accuracy), None]
    tie = {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip", "showlegend": False,
        "line": {"color": paint("fg", 0.6), "width": 1},
    }  # fmt: skip
    return [tie, _diamonds(both, axis, factor)]


def _diamonds(points: Sequence[Point], axis: str, factor: float) -> Figure:
    form = form_of(axis)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "measured",
        "x": shorts(p.measured[axis] / factor for p in points),
        "y": shorts(p.accuracy for p in points),
        "text": [
            hover_text(p.name, f"measured {form(p.measured[axis])}", f"predicted {ranged(p.costs[axis], form)}")
            for p in points
        ],
        "hovertemplate": HOVER,
        "marker": {"symbol": "diamond-open", "size": 9, "color": paint("fg"), "line": {"width": 1.5}},
    }


def _marks(front: Front, factor: float) -> tuple[list[Figure], list[Figure]]:
    """The budget line, and the names of the points on the front."""
    shapes, notes = [], []
    limit = front.budget.get(front.axis)
    if limit is not None:
        x = short(limit / factor)
        shapes.append(
            {
                "type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": paint("good"), "width": 1.5, "dash": "dash"},
            }
        )  # fmt: skip
        note = label(limit / factor, 1.0, f"budget {form_of(front.axis)(limit)}", "center", "bottom")
        notes.append({**note, "x": short(math.log10(limit / factor)), "yref": "paper"})
    for k, p in enumerate(front.points):
        if front.optimal[k]:
            text = f"{p.name} · knee" if k == front.knee else p.name
            note = label(p.costs[front.axis].point / factor, 1.0, text, "left", "top", xshift=7, yshift=-5)
            note |= {"x": short(math.log10(p.costs[front.axis].point / factor)), "y": short(p.accuracy)}
            notes.append({**note, "name": "point"})
    return shapes, notes
