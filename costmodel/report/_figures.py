"""Figures for papers and pull requests, by matplotlib: the pictures of the page, in print."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from .. import units
from ..compare import Comparison
from ..errors import CostmodelError
from ..estimate import Estimate
from ..pareto import Front
from ..validate import Case, Validation
from ._of_estimate import name_of
from ._of_validation import form_of, title_of
from ._plotly import BOUND_COLOURS, ROLE_COLOURS, axis_unit
from ._plots_points import base_method, methods_of, short_metric
from ._series import OpPoint, roofline, timeline

if TYPE_CHECKING:
    from . import Report

__all__ = ["drawn", "figure_of"]

_COLUMN = 3.6  # inches, a column of a two-column paper
_MUTED, _INK, _GOOD, _BAD = "#8a96a5", "#16202e", "#0f8a5f", "#c8372d"


def drawn(report: Report, format: str) -> bytes:
    """The figure of a report as a PNG or SVG file; the same report gives the same bytes."""
    metadata: dict[str, Any] = {"Date": None} if format == "svg" else {"Software": None}
    with matplotlib.rc_context(fname=str(files(__package__).joinpath("paper.mplstyle"))):
        figure = figure_of(report)
        file = io.BytesIO()
        figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()


def figure_of(report: Report) -> Figure:
    """One figure with a panel for each picture of the report.

    Raises:
        CostmodelError: the report has nothing that can be drawn.
    """
    panels = [_panel(front_panel, front) for front in report.fronts if front.points]
    if report.validation is not None:
        v = report.validation
        panels += [_panel(agreement_panel, v, q) for q in v.summary if _cases(v, q)]
    for e in report.estimates:
        panels += [_panel(roofline_panel, e), _panel(memory_panel, e)]
    if report.comparison is not None:
        panels.append(_panel(change_panel, report.comparison))
    if not panels:
        raise CostmodelError("this report has no picture; render it as text, markdown or html")
    across = min(len(panels), 2 if len(panels) < 5 else 3)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(_COLUMN * across, 3.1 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, panel in zip(axes, panels):
        panel(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _panel(draw: Callable[..., None], *what: Any) -> Callable[[Axes], None]:
    return lambda axes: draw(axes, *what)


def _colour(name: str) -> str:
    """The style's colour of a series of the page (``c0``, ``c1``, …)."""
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return f"#{cycle[int(name[1:]) % len(cycle)].lstrip('#')}"


def _log(axis: Any, values: Sequence[float]) -> None:
    """A log axis that has plain numbers, and enough of them where it spans little."""
    span = max(values) / min(values) if values and min(values) > 0 else 10.0
    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _legend_below(axes: Axes) -> None:
    """Where it hides no point."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.2, handletextpad=0.5)


def roofline_panel(axes: Axes, estimate: Estimate) -> None:
    """Every op with FLOPs under the roofs of the profile; area is the share of the step."""
    roofs = roofline(estimate)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s")
    axes.set_title(f"{name_of(estimate)}\non {estimate.device.name}")
    points = roofs.computing
    if points and roofs.peaks and roofs.bandwidths:
        top = roofs.peaks[-1].rate
        x = [p.flops / p.bytes for p in points]
        left = min(*x, *(roofs.peaks[0].rate / b.rate for b in roofs.bandwidths)) / 3
        right = max(*x, *(top / b.rate for b in roofs.bandwidths)) * 4
        steepest = max(b.rate for b in roofs.bandwidths)
        for peak in roofs.peaks:
            axes.plot([peak.rate / steepest, right], [peak.rate] * 2, color=_MUTED, linewidth=1)
            text = f"{peak.name} {units.flops(peak.rate)}/s"
            axes.text(right, peak.rate * 1.08, text, ha="right", va="bottom", fontsize=6, color=_MUTED)
        for i, roof in enumerate(sorted(roofs.bandwidths, key=lambda b: b.rate)):
            style = ("-", "--", ":")[min(i, 2)]
            label = f"{roof.name} {units.size(roof.rate)}/s"
            axes.plot([left, top / roof.rate], [left * roof.rate, top], style, color=_MUTED, linewidth=1, label=label)
    for bound, name in BOUND_COLOURS.items():
        own = [p for p in points if p.bound == bound]
        if own:
            _scatter_ops(axes, own, estimate.latency_s.point, _colour(name), f"bound by {bound}")
    axes.legend(loc="lower right", markerscale=0.6)


def _scatter_ops(axes: Axes, points: Sequence[OpPoint], total_s: float, colour: str, label: str) -> None:
    shares = [p.count * p.seconds / total_s if total_s else 0.0 for p in points]
    axes.scatter(
        [p.flops / p.bytes for p in points],
        [p.flops / p.seconds for p in points],
        s=[8 + 900 * s for s in shares],
        color=colour,
        alpha=0.55,
        edgecolors=colour,
        linewidths=0.5,
        label=label,
    )


def memory_panel(axes: Axes, estimate: Estimate) -> None:
    """Live bytes over the predicted step by role, the peak marked."""
    line = timeline(estimate)
    factor, unit = axis_unit("latency_s", line.end_s)
    size, size_unit = axis_unit("live_bytes", float(line.live[line.peak]))
    time = np.append(line.time_s, line.end_s) / factor
    base = np.zeros(len(time))
    for role, held in sorted(line.held.items(), key=lambda h: list(ROLE_COLOURS).index(h[0])):
        top = base + np.append(held, held[-1]) / size
        colour = _colour(ROLE_COLOURS[role])
        axes.fill_between(
            time, base, top, step="post", color=colour, alpha=0.6, linewidth=0, label=role.replace("_", " ")
        )
        base = top
    peak = float(line.live[line.peak]) / size
    axes.plot(time[line.peak], peak, "v", color=_INK)
    right = time[line.peak] > 0.6 * time[-1]
    axes.annotate(
        f"{units.size(estimate.footprint.peak_live)}", (time[line.peak], peak), textcoords="offset points",
        xytext=(-6 if right else 6, 3), ha="right" if right else "left", fontsize=7, color=_INK,
    )  # fmt: skip
    for _, start, _ in line.phases[1:]:
        axes.axvline(start / factor, color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"predicted time / {unit}", ylabel=f"live / {size_unit}", xlim=(0, time[-1]), ylim=(0, peak * 1.15))
    axes.set_title("Live bytes over the step")
    _legend_below(axes)


def _cases(validation: Validation, quantity: str) -> list[Case]:
    return [c for c in validation.cases if c.quantity == quantity and c.truth > 0 and c.predicted > 0]


def agreement_panel(axes: Axes, validation: Validation, quantity: str) -> None:
    """Predicted over measured with intervals and noise; the one-constant roofline as hollow squares."""
    cases = _cases(validation, quantity)
    values = [v for c in cases for v in (c.truth, c.predicted)]
    factor, unit = axis_unit(quantity, max(values))
    low, high = min(values) / factor / 1.6, max(values) / factor * 1.6
    ends = np.array([low, high])
    axes.plot(ends, ends, color=_MUTED, linewidth=1)
    axes.fill_between(ends, ends * 0.9, ends * 1.1, color=_MUTED, alpha=0.18, linewidth=0, label="±10 %")
    with_baseline = [c for c in cases if c.baseline]
    if with_baseline:
        axes.plot(
            [c.truth / factor for c in with_baseline], [(c.baseline or 0.0) / factor for c in with_baseline], "s",
            markerfacecolor="none", markeredgecolor=_MUTED, markersize=4, label="one-constant roofline",
        )  # fmt: skip
    for i, mode in enumerate(dict.fromkeys(c.mode for c in cases)):
        own = [c for c in cases if c.mode == mode]
        axes.errorbar(
            [c.truth / factor for c in own],
            [c.predicted / factor for c in own],
            yerr=[[(c.predicted - c.low) / factor for c in own], [(c.high - c.predicted) / factor for c in own]],
            xerr=[(c.noise or 0.0) * c.truth / factor for c in own],
            fmt="o", markersize=4, elinewidth=0.7, capsize=1.5, color=_colour(f"c{i}"), label=f"predicted, {mode}",
        )  # fmt: skip
    truth = "published" if all(c.measured is None for c in cases) else "measured"
    name = title_of(quantity) + (f" / {unit}" if unit else "")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel=f"{truth} {name}", ylabel=f"predicted {name}", title=title_of(quantity))
    for axis in (axes.xaxis, axes.yaxis):
        _log(axis, [low, high])
    _legend_below(axes)


def front_panel(axes: Axes, front: Front) -> None:
    """Points by cost and accuracy, predicted and measured; the front, its knee, the budget and its best point."""
    points, name = front.points, front.axis
    costs = [p.costs[name] for p in points]
    factor, unit = axis_unit(name, max(c.point for c in costs))
    optimal = [i for i, o in enumerate(front.optimal) if o]
    axes.step(
        [costs[i].point / factor for i in optimal], [points[i].accuracy for i in optimal], where="post", color=_MUTED,
        linewidth=1,
    )  # fmt: skip
    for k, method in enumerate(methods_of(front)):
        colour = _colour(f"c{k}")
        for i, p in enumerate(points):
            if base_method(p.method) != method:
                continue
            c = costs[i]
            fill = colour if front.sure[i] else "white"
            axes.errorbar(
                c.point / factor, p.accuracy,
                xerr=[[(c.point - c.low) / factor], [(c.high - c.point) / factor]],
                yerr=p.accuracy_error if math.isfinite(p.accuracy_error) else 0.0,
                fmt="o" if front.optimal[i] else "x", color=colour, markerfacecolor=fill, markeredgecolor=colour,
                markersize=6 if front.optimal[i] else 4, elinewidth=0.6, alpha=1.0 if front.optimal[i] else 0.6,
            )  # fmt: skip
            if front.optimal[i]:
                text = p.name + (" (knee)" if i == front.knee else "")
                axes.annotate(
                    text, (c.point / factor, p.accuracy), textcoords="offset points", xytext=(5, -8), fontsize=6,
                    color=_INK,
                )  # fmt: skip
        axes.plot([], [], "o", color=colour, label=method)
    _measured(axes, front, factor)
    limit = front.budget.get(name)
    if limit is not None:
        axes.axvline(limit / factor, color=_GOOD, linestyle="--", linewidth=1, label=f"≤ {form_of(name)(limit)}")
    if front.within_budget is not None:
        best = front.within_budget
        axes.plot(
            costs[best].point / factor, points[best].accuracy, "*", color=_GOOD, markersize=11, zorder=5,
            label="best within budget",
        )  # fmt: skip
    axes.set(xscale="log", xlabel=f"predicted {title_of(name)}" + (f" / {unit}" if unit else ""))
    better = "higher" if points[0].higher_is_better else "lower"
    axes.set_ylabel(f"{short_metric(points[0].metric)} ({better} is better)")
    axes.set_title(f"{points[0].family} on {front.device}")
    _log(axes.xaxis, [v / factor for c in costs for v in (c.low, c.high)])
    _legend_below(axes)


def _measured(axes: Axes, front: Front, factor: float) -> None:
    label = "measured"
    for p in front.points:
        value = p.measured.get(front.axis)
        if value is not None:
            axes.plot([p.costs[front.axis].point / factor, value / factor], [p.accuracy] * 2, color=_INK, linewidth=0.6)
            axes.plot(
                value / factor, p.accuracy, "D", markerfacecolor="none", markeredgecolor=_INK, markersize=4, label=label
            )
            label = "_nolegend_"


def change_panel(axes: Axes, comparison: Comparison, top: int = 10) -> None:
    """Seconds by which each op got dearer or cheaper, the largest first, the others as one bar."""
    changes = [(c.key.removeprefix("aten::"), c.delta_s) for c in comparison.by_op[:top] if c.delta_s]
    rest = comparison.delta_s - math.fsum(d for _, d in changes)
    if abs(rest) > 1e-9 * max(comparison.a.latency_s.point, comparison.b.latency_s.point):
        changes.append(("all others", rest))
    factor, unit = axis_unit("latency_s", max((abs(d) for _, d in changes), default=1.0))
    names = [n for n, _ in changes][::-1]
    deltas = [d / factor for _, d in changes][::-1]
    axes.barh(names, deltas, color=[_BAD if d > 0 else _GOOD for d in deltas], height=0.7)
    axes.axvline(0, color=_MUTED, linewidth=0.8)
    axes.set(xlabel=f"b − a / {unit}", title=f"{units.seconds(comparison.a.latency_s.point)} to "
             f"{units.seconds(comparison.b.latency_s.point)}")  # fmt: skip
