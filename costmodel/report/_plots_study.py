"""Pictures of what stands beside a validation: errors by class of op, and what each term of the model buys."""

from __future__ import annotations

from .. import units
from ..validate import Ablated, ClassError, Validation
from ._of_validation import signed_percent
from ._plotly import HOVER, Figure, hover_text, paint, shorts

__all__ = ["study_figures"]

_PHASES = {"infer": "inference", "train": "training"}
_COLOURS = {"infer": "c0", "train": "c1"}
_MOST_CLASSES = 24


def study_figures(v: Validation) -> list[tuple[str, Figure]]:
    """(title, figure) of everything that there is something to draw of."""
    found = []
    if v.ablation:
        found.append(("What each term buys", ablation_figure(v)))
    if v.classes:
        found.append(("Error by class of op", classes_figure(v)))
    return found


def ablation_figure(v: Validation) -> Figure:
    """Mean error with each term taken out, a bar a phase; the tick on it is the error with one free factor."""
    names = list(dict.fromkeys(a.name for a in v.ablation))
    data: list[Figure] = []
    for phase in dict.fromkeys(a.phase for a in v.ablation):
        rows = [a for a in v.ablation if a.phase == phase]
        colour = _COLOURS[phase]
        data.append(
            {
                "type": "bar", "orientation": "h", "name": _PHASES[phase], "y": [a.name for a in rows],
                "x": shorts(100 * a.mape for a in rows), "text": [_ablated_text(a) for a in rows],
                "textposition": "none", "hovertemplate": HOVER, "marker": {"color": paint(colour, 0.75)},
            }
        )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "height": 120 + 44 * len(names),
            "margin": {"l": 320},
            "xaxis": {"title": {"text": "MAPE / %"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "hovermode": "closest",
        },
    }


def _ablated_text(a: Ablated) -> str:
    return hover_text(
        a.name,
        f"{_PHASES[a.phase]}, {a.n} cases",
        f"MAPE {units.percent(a.mape)}, median {units.percent(a.median_ape)}, worst {units.percent(a.worst)}",
        f"within 10 %: {units.percent(a.within_10)}",
        "" if a.free_mape is None else f"with one free factor {units.percent(a.free_mape)}",
    )


def classes_figure(v: Validation) -> Figure:
    """Signed error of each class over its share of the time; the size of a point is its mean absolute error."""
    data: list[Figure] = []
    for phase in dict.fromkeys(c.phase for c in v.classes):
        rows = [c for c in v.classes if c.phase == phase][:_MOST_CLASSES]
        data.append(
            {
                "type": "scatter", "mode": "markers+text", "name": _PHASES[phase],
                "x": shorts(100 * c.share for c in rows), "y": shorts(100 * c.signed for c in rows),
                "text": [c.kind if c.share > 0.02 else "" for c in rows], "textposition": "top center",
                "textfont": {"size": 10, "color": paint("muted")},
                "hovertext": [_class_text(c) for c in rows], "hovertemplate": "%{hovertext}<extra></extra>",
                "marker": {
                    "size": shorts(6 + 40 * min(c.absolute, 1.0) for c in rows),
                    "color": paint(_COLOURS[phase], 0.6),
                },
            }
        )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "share of the time / %"}, "type": "log"},
            "yaxis": {"title": {"text": "predicted over measured, less one / %"}, "zeroline": True},
            "hovermode": "closest",
        },
    }


def _class_text(c: ClassError) -> str:
    return hover_text(
        c.kind,
        f"{_PHASES[c.phase]}, {units.count(c.ops)} ops, {units.percent(c.share)} of the time",
        f"signed {signed_percent(c.signed)}, mean absolute {units.percent(c.absolute)}",
    )
