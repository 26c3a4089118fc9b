"""Interactive pictures of one step: roofline, movement of bytes, memory over time, the way from one step to another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from .. import units
from ..compare import Comparison
from ..estimate import Estimate
from ._plotly import (
    BOUND_COLOURS,
    HOVER,
    ROLE_COLOURS,
    Figure,
    axis_unit,
    hover_text,
    label,
    paint,
    ruled,
    short,
    shorts,
)
from ._series import OpPoint, Roof, roofline, timeline

# Two bars of one name would be one: so many of this character, which has no width, tell them apart.
_APART = "\u200b"

__all__ = ["memory_figure", "movement_figure", "roofline_figure", "waterfall_figure"]


def roofline_figure(estimate: Estimate) -> Figure:
    """Every op with FLOPs: FLOP/s over FLOPs a byte, area by its share of the time, colour by what bounds it."""
    roofs = roofline(estimate)
    points = roofs.computing
    data: list[Figure] = []
    annotations: list[Figure] = []
    if points and roofs.peaks and roofs.bandwidths:
        x = [p.flops / p.bytes for p in points]
        left = min(*x, *(roofs.peaks[0].rate / b.rate for b in roofs.bandwidths)) / 3
        right = max(*x, *(roofs.peaks[-1].rate / b.rate for b in roofs.bandwidths)) * 4
        data += _roofs(roofs.peaks, roofs.bandwidths, left, right, annotations)
    data += _op_traces(points, estimate.latency_s.point, lambda p: p.flops / p.bytes, lambda p: p.flops / p.seconds)
    return {
        "data": data,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "FLOPs a byte"}, "dtick": 1},
            "yaxis": {"type": "log", "title": {"text": "FLOP/s"}, "dtick": 1, "exponentformat": "SI"},
            "annotations": annotations,
            "hovermode": "closest",
        },
    }  # fmt: skip


def _roofs(
    peaks: Sequence[Roof], bandwidths: Sequence[Roof], left: float, right: float, annotations: list[Figure]
) -> list[Figure]:
    top, steepest = peaks[-1].rate, max(b.rate for b in bandwidths)
    lines = []
    for peak in peaks:
        lines.append(ruled([peak.rate / steepest, right], [peak.rate, peak.rate], peak.name, paint("muted")))
        annotations.append(
            label(0.8 * right, peak.rate, f"{peak.name} {units.flops(peak.rate)}/s", "right", "bottom", log=True)
        )
    for i, roof in enumerate(sorted(bandwidths, key=lambda b: b.rate)):
        dash = ("solid", "dash", "dot")[min(i, 2)]
        lines.append(ruled([left, top / roof.rate], [left * roof.rate, top], roof.name, paint("muted"), dash=dash))
        # on the slope: the lowest line's name to its lower right, the others' to their upper left, further up each
        x = left * 10 ** (0.15 + 0.6 * i)
        place = ("left", "top") if i == 0 else ("right", "bottom")
        annotations.append(label(x, x * roof.rate, f"{roof.name} {units.size(roof.rate)}/s", *place, log=True))
    return lines


def _op_traces(
    points: Sequence[OpPoint], total_s: float, x: Callable[[OpPoint], float], y: Callable[[OpPoint], float]
) -> list[Figure]:
    """One trace a bound; the area of a marker is its share of the step."""
    traces = []
    for bound, colour in BOUND_COLOURS.items():
        own = sorted((p for p in points if p.bound == bound), key=lambda p: -p.seconds * p.count)
        if not own:
            continue
        shares = [p.count * p.seconds / total_s if total_s else 0.0 for p in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"bound by {bound}",
                "x": shorts(x(p) for p in own),
                "y": shorts(y(p) for p in own),
                "text": [_op_text(p, s) for p, s in zip(own, shares)],
                "hovertemplate": HOVER,
                "marker": {
                    "size": [round(min(5 + 90 * math.sqrt(s), 34), 1) for s in shares],
                    "color": paint(colour, 0.65),
                    "line": {"color": paint(colour), "width": 1},
                },
            }
        )
    return traces


def _op_text(p: OpPoint, share: float) -> str:
    times = f"{p.count} × " if p.count > 1 else ""
    return hover_text(
        f"{p.op.removeprefix('aten::')} · {p.phase}",
        f"{p.module or '(root)'}{' and others' if p.count > 1 else ''}",
        f"{times}{units.seconds(p.seconds)} = {units.percent(share)} of the step",
        f"{units.flops(p.flops)} and {units.size(p.bytes)} each",
        f"{units.flops(p.flops / p.seconds)}/s, {units.size(p.bytes / p.seconds)}/s; bound by {p.bound}",
    )


def movement_figure(estimate: Estimate) -> Figure | None:
    """Ops without FLOPs that move bytes: bytes/s over bytes; None where there are none."""
    roofs = roofline(estimate)
    points = roofs.moving
    if not points:
        return None
    left, right = min(p.bytes for p in points) / 3, max(p.bytes for p in points) * 3
    data, annotations = [], []
    for i, roof in enumerate(sorted(roofs.bandwidths, key=lambda b: b.rate)):
        data.append(
            ruled([left, right], [roof.rate] * 2, roof.name, paint("muted"), dash=("solid", "dash", "dot")[min(i, 2)])
        )
        annotations.append(label(left, roof.rate, f"{roof.name} {units.size(roof.rate)}/s", "left", "bottom", log=True))
    data += _op_traces(points, estimate.latency_s.point, lambda p: p.bytes, lambda p: p.bytes / p.seconds)
    return {
        "data": data,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "bytes that an op moves"}, "dtick": 1, "exponentformat": "SI"},
            "yaxis": {"type": "log", "title": {"text": "bytes/s"}, "dtick": 1, "exponentformat": "SI"},
            "annotations": annotations,
            "hovermode": "closest",
        },
    }  # fmt: skip


# Memory


def memory_figure(estimate: Estimate) -> Figure:
    """Live bytes over the predicted step, stacked by role; below, when the largest holders of the peak live."""
    line = timeline(estimate)
    time_unit, time_name = axis_unit("latency_s", line.end_s)
    byte_unit, byte_name = axis_unit("live_bytes", float(line.live[line.peak]))
    x = shorts(line.time_s / time_unit)
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "live",
            "name": role.replace("_", " "),
            "x": [*x, short(line.end_s / time_unit)],
            "y": shorts([*held / byte_unit, held[-1] / byte_unit]),
            "line": {"shape": "hv", "width": 0.5, "color": paint(ROLE_COLOURS[role])},
            "fillcolor": paint(ROLE_COLOURS[role], 0.6),
            "hovertemplate": f"%{{y:.4~g}} {byte_name}",
        }
        for role, held in sorted(line.held.items(), key=lambda h: list(ROLE_COLOURS).index(h[0]))
    ]
    peak = hover_text(
        f"peak {units.size(estimate.footprint.peak_live)}",
        *(f"{units.size(h.bytes)} {h.role.replace('_', ' ')} {h.name or h.op.removeprefix('aten::')}"
          for h in estimate.footprint.holders[:6]),
    )  # fmt: skip
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "peak",
            "x": [x[line.peak]],
            "y": [short(float(line.live[line.peak]) / byte_unit)],
            "text": [peak],
            "hovertemplate": HOVER,
            "marker": {"symbol": "triangle-down", "size": 11, "color": paint("fg")},
            "showlegend": False,
        }
    )
    lives = line.lives[::-1]
    data.append(
        {
            "type": "bar",
            "orientation": "h",
            "yaxis": "y2",
            "base": shorts(v.start_s / time_unit for v in lives),
            "x": shorts(max(v.end_s - v.start_s, line.end_s * 1e-3) / time_unit for v in lives),
            "y": list(range(len(lives))),
            "text": [escape(f"{units.size(v.bytes)} {v.name}") for v in lives],
            "textposition": "auto",
            "insidetextanchor": "start",
            "textangle": 0,
            "constraintext": "none",
            "textfont": {"color": paint("fg"), "size": 11},
            "cliponaxis": True,
            "hovertext": [
                hover_text(
                    f"{units.size(v.bytes)} {v.name}", v.role,
                    f"lives {units.seconds(v.start_s)} – {units.seconds(v.end_s)}",
                )
                for v in lives
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {"color": [paint(ROLE_COLOURS[v.role.replace(" ", "_")], 0.6) for v in lives]},
            "showlegend": False,
        }
    )  # fmt: skip
    shapes, annotations = _phase_bands(line.phases, time_unit)
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": f"predicted time / {time_name}"}, "anchor": "y2",
                "range": [0, short(line.end_s / time_unit)],
            },
            "yaxis": {"title": {"text": f"live / {byte_name}"}, "domain": [0.46, 1], "rangemode": "tozero"},
            "yaxis2": {
                "domain": [0, 0.4], "showticklabels": False, "showgrid": False, "zeroline": False,
                "title": {"text": "holders of the peak"},
            },
            "hovermode": "x",
            "bargap": 0.12,
            "shapes": shapes,
            "annotations": annotations,
            "height": 560,
        },
    }  # fmt: skip


def _phase_bands(phases: Sequence[tuple[str, float, float]], unit: float) -> tuple[list[Figure], list[Figure]]:
    """A dotted line where a phase begins, and its name above stretches that are wide enough."""
    if len(phases) < 2:
        return [], []
    end = phases[-1][2]
    shapes = [
        {
            "type": "line", "x0": short(start / unit), "x1": short(start / unit), "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": paint("muted"), "width": 1, "dash": "dot"},
        }
        for _, start, _ in phases[1:]
    ]  # fmt: skip
    notes = [
        {
            **label((start + stop) / 2 / unit, 1.0, name, "center", "bottom"),
            "yref": "paper",
        }
        for name, start, stop in phases
        if stop - start > 0.12 * end
    ]
    return shapes, notes


# Comparison


def waterfall_figure(comparison: Comparison, top: int = 8) -> Figure:
    """From the latency of a to that of b, op by op."""
    factor, unit = axis_unit("latency_s", max(comparison.a.latency_s.point, comparison.b.latency_s.point))
    changes = comparison.by_op[:top]
    rest = comparison.delta_s - math.fsum(c.delta_s for c in changes)
    steps = [(c.key.removeprefix("aten::"), c.delta_s) for c in changes if c.delta_s]
    if abs(rest) > 1e-9 * max(comparison.a.latency_s.point, comparison.b.latency_s.point):
        steps.append(("all others", rest))
    names = ["a", *(name for name, _ in steps), "b"]
    values = [comparison.a.latency_s.point, *(d for _, d in steps), comparison.b.latency_s.point]
    texts = [units.seconds(v) if v >= 0 else f"−{units.seconds(-v)}" for v in values]
    return {
        "data": [
            {
                "type": "waterfall",
                "orientation": "h",
                "measure": ["absolute", *["relative"] * len(steps), "total"],
                "y": [f"{_cut(n)}{_APART * i}" for i, n in enumerate(names)],
                "x": shorts(v / factor for v in values),
                "text": texts,
                "hovertext": [hover_text(n, t) for n, t in zip(names, texts)],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "textposition": "auto",
                "increasing": {"marker": {"color": paint("bad")}},
                "decreasing": {"marker": {"color": paint("good")}},
                "totals": {"marker": {"color": paint("c0")}},
                "connector": {"line": {"color": paint("muted"), "width": 1}},
                "showlegend": False,
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": f"latency / {unit}"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "hovermode": "closest",
            "height": 90 + 32 * len(names),
        },
    }


def _cut(name: str, most: int = 24) -> str:
    """A name without its middle where it is long: what tells ops apart stands at their ends."""
    half = (most - 1) // 2
    return escape(name if len(name) <= most else f"{name[:half]}…{name[-half:]}")
