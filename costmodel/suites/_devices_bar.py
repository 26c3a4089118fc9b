"""What a figure of the devices suite is of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a figure of the suite is of, and how good it has to be.

    Attributes:
        group: of its cases.
        split: what the prediction had seen and had not.
        statistic: ``mape``, ``median`` or ``worst``; goal: at most this, or None where there is none.
    """

    group: str
    split: str
    statistic: str
    goal: float | None
