"""The pictures of a report as a PNG file, 200 dots an inch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._figures import drawn

if TYPE_CHECKING:
    from . import Report

__all__ = ["render"]

SUFFIX = ".png"


def render(report: Report) -> bytes:
    """One figure with a panel a picture."""
    return drawn(report, "png")
