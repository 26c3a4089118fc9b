"""What plotly figures are made of. Figures are plain ``{"data": …, "layout": …}`` dicts that the page draws.

A colour is written ``var(--name)`` or ``var(--name)/0.4`` (with its opacity): the page puts the value of its theme, so
that one figure serves light and dark. Axis units are chosen here; values are rounded to what a screen can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..estimate import Range
from ._of_validation import title_of
from ._table import UNITS

__all__ = [
    "BOUND_COLOURS", "HOVER", "ROLE_COLOURS", "Figure", "axis_title", "axis_unit", "error_bar", "hover_text", "label",
    "log_ticks", "paint", "ruled", "short", "shorts",
]  # fmt: skip

Figure = dict[str, Any]

# What bounds an op, and roles of memory: names to colours of the page (c0 … c7 are a colour-blind-safe series).
BOUND_COLOURS = {
    "compute": "c0", "dram": "c1", "L3": "c2", "L2": "c3", "L1": "c5", "overhead": "c4", "issue": "c6",
}  # fmt: skip
ROLE_COLOURS = {
    "parameters": "c0", "optimizer_state": "c3", "gradients": "c1", "saved_activations": "c2", "temporaries": "c4",
    "inputs": "c5", "buffers": "c6", "workspace": "c7",
}  # fmt: skip
_DIMENSION = {"_s": "time", "_bytes": "bytes"}


def paint(name: str, opacity: float | None = None) -> str:
    return f"var(--{name})" + ("" if opacity is None else f"/{opacity}")


def short(value: float) -> float:
    """Five digits: less than a pixel on any screen, and a third of the bytes."""
    return float(f"{value:.5g}")


def shorts(values: Iterable[float]) -> list[float]:
    return [short(v) for v in values]


def axis_unit(quantity: str, largest: float) -> tuple[float, str]:
    """Factor and unit in which an axis of `quantity` (its unit is in its name) has handy numbers."""
    dimension = next((d for end, d in _DIMENSION.items() if quantity.endswith(end)), None)
    if dimension is None:
        return (1.0, "J") if quantity == "energy_j" else (1.0, "")
    return next((step for step in UNITS[dimension] if largest >= step[0]), UNITS[dimension][-1])


def axis_title(quantity: str, unit: str) -> str:
    return f"{title_of(quantity)} / {unit}" if unit else title_of(quantity)


def hover_text(*lines: str) -> str:
    return "<br>".join(escape(line) for line in lines if line)


HOVER = "%{text}<extra></extra>"


def ruled(x: Sequence[float], y: Sequence[float], name: str, colour: str, **more: Any) -> Figure:
    width, dash = more.pop("width", 1.5), more.pop("dash", "solid")
    return {
        "type": "scatter", "mode": "lines", "x": shorts(x), "y": shorts(y), "name": name, "hoverinfo": "skip",
        "line": {"color": colour, "width": width, "dash": dash}, "showlegend": False, **more,
    }  # fmt: skip


def label(x: float, y: float, text: str, xanchor: str, yanchor: str, log: bool = False, **more: Any) -> Figure:
    place = (math.log10(x), math.log10(y)) if log else (x, y)
    return {
        "x": short(place[0]), "y": short(place[1]), "text": escape(text), "showarrow": False, "xanchor": xanchor,
        "yanchor": yanchor, "font": {"size": 11, "color": paint("muted")}, **more,
    }  # fmt: skip


def log_ticks(low: float, high: float) -> Figure:
    """Settings of a log axis from `low` to `high` and some way beyond: ticks at 1, 2 and 5, as plain numbers.

    Beyond three decades only at 1.
    """
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    values = [step * 10.0**power for power in range(first, last) for step in steps]
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": shorts(values),
        "ticktext": [f"{v:,.0f}" if v >= 1 else f"{v:.6f}".rstrip("0") for v in values],
    }


def error_bar(ranges: Sequence[Range], factor: float, colour: str) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": shorts((r.high - r.point) / factor for r in ranges),
        "arrayminus": shorts((r.point - r.low) / factor for r in ranges),
        "thickness": 1,
        "width": 2,
        "color": paint(colour, 0.45),
    }
