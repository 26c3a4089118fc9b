"""Isolated calls of the training methods' own kernels, for calibration (see `micro_ops`)."""

from __future__ import annotations

from collections.abc import Callable

from .micro_ops import Call, Shapes

__all__ = ["GENERATORS"]

# As in `micro_ops`: share of the points, and whether only training runs it.
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {}
