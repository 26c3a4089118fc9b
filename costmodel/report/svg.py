"""The pictures of a report as an SVG file; text stays text, so that a paper's fonts can take over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._figures import drawn

if TYPE_CHECKING:
    from . import Report

__all__ = ["render"]

SUFFIX = ".svg"


def render(report: Report) -> str:
    """One figure with a panel a picture."""
    return drawn(report, "svg").decode()
